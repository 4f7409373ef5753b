"""Text prompts: from what a source says of a record to the tokens of a shard, cleaned, and back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.batches import ShuffledBatches
from pipeline.data.cleaning import Lists, read_block_list
from pipeline.data.cuts import plan_shards
from pipeline.data.layout import Layout
from pipeline.data.order import Order
from pipeline.data.prepared import Prepared
from pipeline.data.prompts import decode_prompt, encode_prompts, is_cut, prompt_of
from pipeline.data.records import make_record
from pipeline.data.selection import load_rows, select
from pipeline.data.shards import shard_schema
from pipeline.data.stages import CutStage
from pipeline.data.streaming import StreamedBatches
from pipeline.spec import PromptSpec
from tests.data.corpora import corpus_of, records_of
from tests.data.prepared_sets import PICTURES, memory_store, pictures, write_prepared
from tests.data.test_stages import FewRecords, data_spec, read, table_of

WAVES = {"kind": "waveform", "num_samples": 64}
PROMPTED = Layout(**{**PICTURES.as_dict(), "shape": PICTURES.shape, "labels": PICTURES.labels, "prompt_length": 12})


@given(st.text(max_size=40), st.integers(4, 60))
def test_a_prompt_comes_back_from_its_tokens_unless_it_is_cut(text: str, length: int) -> None:
    (tokens,) = encode_prompts([text], length)
    assert tokens.shape == (length,)
    if not is_cut(text, length):
        assert decode_prompt(tokens) == text


def test_a_record_without_a_prompt_has_nothing_but_padding() -> None:
    tokens = encode_prompts(["", None, "é"], 6)
    assert [decode_prompt(row) for row in tokens] == ["", None, "é"]
    assert len(set(tokens[1].tolist())) == 1 and len(set(tokens[0].tolist())) == 3


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"of": "label", "words": {"7": "seven"}}, ["seven", "8", None]),
        ({"of": "source", "words": {"hi": "hello"}}, ["hello", None, "a\N{REPLACEMENT CHARACTER}b"]),
    ],
)
def test_a_prompt_is_the_label_or_what_the_source_gives_in_the_words_of_the_spec(spec, expected) -> None:
    records = [
        make_record("a", b"", label="7", prompt="hi"),
        make_record("b", b"", label="8"),
        make_record("c", b"", prompt="a\udc80b"),
    ]
    told = [prompt_of(record, PromptSpec(**spec)) for record in records]
    assert [text and text.replace("?", "\N{REPLACEMENT CHARACTER}") for text in told] == expected


def test_names_and_fields_give_prompts(tmp_path: Path) -> None:
    (tmp_path / "7_anna_0.wav").write_bytes(b"x")
    files = corpus_of("audio", kind="files", path=str(tmp_path), prompt_pattern=r"(\d)_", label_pattern=r"_([a-z]+)_")
    assert [(record["prompt"], record["label"]) for record in records_of(files)] == [("7", "anna")]
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "asks": "b"}\n{"text": "c"}\n')
    (tmp_path / "rows.csv").write_text("text,asks\na,b\n")
    rows = corpus_of("text", kind="jsonl", path=str(tmp_path / "rows.jsonl"), prompt_field="asks")
    assert [record["prompt"] for record in records_of(rows)] == ["b", None]
    table = corpus_of("text", kind="csv", path=str(tmp_path / "rows.csv"), prompt_field="asks")
    assert [record["prompt"] for record in records_of(table)] == ["b"]


def test_a_prompt_is_cleaned_as_a_text_whatever_the_modality(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("forbidden words\n")
    lists = Lists(block_list=read_block_list(str(tmp_path / "list")))
    sound = np.ones(10, np.float32)
    corpus = FewRecords(
        make_record("plain", sound, rate=8000, prompt="e\N{COMBINING ACUTE ACCENT}\x00"),
        make_record("address", sound * 0.5, rate=8000, prompt="write to anna@example.org"),
        make_record("blocked", sound * 0.25, rate=8000, prompt="some Forbidden words here"),
        make_record("none", sound * 0.125, rate=8000),
    )
    cleaning = {"text": {"personal_data": "mask", "block_list": str(tmp_path / "list")}}
    data = data_spec(WAVES, prompt={"of": "source"}, cleaning=cleaning)
    plain, address, blocked, none = table_of(read(corpus, data, memory_store(), lists))
    assert (plain["prompt"], plain["changed"]) == ("é", "control characters+unicode")
    assert address["prompt"] == "write to [email]" and json.loads(address["personal"]) == {"email": 1}
    assert blocked["dropped"] == "block list" and blocked["prompt"] is None and blocked["data"] is None
    assert blocked["detail"] == "in its prompt: 'forbidden words' is in it"
    assert none["prompt"] is None and none["data"] is not None


def test_a_record_whose_prompt_has_personal_data_is_dropped_where_texts_are() -> None:
    corpus = FewRecords(make_record("a", np.ones(10, np.float32), rate=8000, label="anna@example.org"))
    data = data_spec(WAVES, prompt={"of": "label"}, cleaning={"text": {"personal_data": "drop"}})
    (row,) = table_of(read(corpus, data, memory_store()))
    assert row["dropped"] == "personal data" and row["prompt"] is None


def test_shards_keep_prompts_as_tokens_and_tell_how_often_each_is_there() -> None:
    words = ["one", "two", None, "one", "one"]
    corpus = FewRecords(
        *(make_record(str(i), np.full(9, i / 9, np.float32), rate=8000, prompt=word) for i, word in enumerate(words))
    )
    data = data_spec(WAVES, prompt={"of": "source"}, split={"validation": 0.0, "test": 0.0})
    part, store = read(corpus, data, memory_store()), memory_store()
    rows = load_rows([part], [np.zeros(1, np.int64)])
    selection = select(rows, np.zeros((0, 2), np.int64), data, str)
    layout = Layout("audio", "signal", (1, 64), "int16", "gaussian", prompt_length=8)
    (plan,) = plan_shards(selection, "train", layout, 100)
    answer = CutStage([part], None, store, layout)(plan)
    assert Counter(json.loads(answer["prompts"])) == {"one": 3, "two": 1}
    manifest = _manifest_of(layout, json.loads(answer["shard"]))
    arrays = Prepared(store, manifest).load_split("train")
    assert arrays.prompt is not None and arrays.prompt.shape == (5, 8)
    assert [decode_prompt(row.numpy()) for row in arrays.prompt] == words


def test_a_shard_without_prompts_has_no_column_for_them() -> None:
    assert shard_schema(PICTURES).names == ["id", "origin", "label", "x"]
    assert shard_schema(PROMPTED).names == ["id", "origin", "label", "prompt", "x"]
    assert write_prepared(memory_store(), PICTURES, pictures(5)).load_split("train").prompt is None


@pytest.mark.parametrize("world_size", [1, 2])
def test_prompts_stay_with_their_examples_in_memory_and_streamed(world_size: int) -> None:
    prepared = write_prepared(
        memory_store(), PROMPTED, pictures(23), group_rows=3, prompts=[f"n {i}" if i % 4 else None for i in range(23)]
    )
    arrays, shards = prepared.load_split("train"), prepared.shards("train")
    order = Order([shard.rows for shard in shards], 9, seed=3)
    for rank in range(world_size):
        streamed = StreamedBatches(shards, PROMPTED, order, 6, rank, world_size)
        held = ShuffledBatches(arrays, PROMPTED, order, 6, rank, world_size)
        for number in range(9):
            here, there = held.batch(number), streamed.batch(number)
            assert here.prompt is not None and there.prompt is not None
            assert here.prompt.equal(there.prompt) and here.x.equal(there.x)
            told = [decode_prompt(row.numpy()) for row in here.prompt]
            assert told == [f"n {i}" if i % 4 else None for i in here.index.tolist()]
        streamed.close()


def _manifest_of(layout: Layout, shard: dict) -> object:
    from pipeline.data.manifest import FORMAT_VERSION, Manifest

    entry = {"shards": [shard], "rows": shard["rows"], "tail_tokens": []}
    return Manifest(FORMAT_VERSION, "k", {}, {}, {}, {}, {}, layout.as_dict(), {"train": entry}, {})
