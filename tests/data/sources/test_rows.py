"""Rows with fields: CSV, JSON lines and Parquet tell label, group and split alike, and dialogues become text."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.sources.fields import RowError, render_turns
from pipeline.errors import CorpusError
from tests.data.corpora import corpus_of, records_of

FIELDS = {"label_field": "mood", "group_field": "author", "split_field": "part"}
ROWS: list[dict[str, Any]] = [
    {"text": '春, a "quoted" word\nand a line', "mood": "glad", "author": "Mei", "part": "train"},
    {"text": "second", "mood": "sad", "author": "Mei", "part": "VALID"},
    {"text": "third", "mood": "sad", "author": "Bo", "part": "dev"},
    {"text": "fourth", "mood": "glad", "author": "Bo", "part": "test"},
    {"text": "fifth", "mood": "glad", "author": "Bo", "part": "holdout"},
]


def write_rows(kind: str, folder: Path) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_rows_tell_label_group_and_split(kind: str, tmp_path: Path) -> None:
    records = records_of(corpus_of("text", kind=kind, path=str(write_rows(kind, tmp_path)), **FIELDS))
    assert [record["payload"] for record in records] == [row["text"] for row in ROWS]
    assert [record["label"] for record in records[:4]] == ["glad", "sad", "sad", "glad"]
    assert [record["group"] for record in records[:4]] == ["Mei", "Mei", "Bo", "Bo"]
    assert [record["split"] for record in records[:4]] == ["train", "validation", "validation", "test"]
    assert "'part' is 'holdout'" in str(records[4]["error"])
    assert [record["error"] for record in records[:4]] == [None] * 4


def test_a_csv_is_read_as_pythons_own_reader_reads_it_and_keeps_its_lines(tmp_path: Path) -> None:
    text = 'text;mood\r\n"a;b";x\r\n\r\n"two\r\nlines";"y ""z"""\r\nplain;\r\n'
    (tmp_path / "a.csv").write_bytes(("\ufeff" + text).encode())
    records = records_of(corpus_of("text", kind="csv", path=str(tmp_path), delimiter=";", label_field="mood"))
    rows = [row for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=";") if row]
    assert [(record["payload"], record["label"]) for record in records] == [(row["text"], row["mood"]) for row in rows]
    assert [record["origin"] for record in records] == ["a.csv:2", "a.csv:4", "a.csv:6"]


def test_rows_of_a_csv_that_are_wrong_are_errors_of_their_own(tmp_path: Path) -> None:
    rows = b'text,mood\nfine,a\ntoo,many,fields\n"quote"d,b\nalone\ncaf\xe9,c\nfine,d\n'
    (tmp_path / "a.csv").write_bytes(rows)
    records = records_of(corpus_of("text", kind="csv", path=str(tmp_path), encoding="utf-8"))
    errors = [record["error"] for record in records]
    assert errors[1] == "3 fields, the first line names 2" and errors[3] == "1 fields, the first line names 2"
    assert "not CSV" in str(errors[2]) and "not utf-8: byte 0xe9 at character 3" in str(errors[4])
    assert errors[0] is None and errors[5] is None
    found = records_of(corpus_of("text", kind="csv", path=str(tmp_path)))
    assert (found[4]["payload"], found[4]["facts"]) == ("café", {"encoding": "cp1252"})


def test_a_csv_that_cannot_be_one_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\nfine\n"never closed\nfine\n')
    with pytest.raises(CorpusError, match="begins at line 3 has a quote that is never closed"):
        records_of(corpus_of("text", kind="csv", path=str(tmp_path)))
    (tmp_path / "a.csv").write_text("body,mood\nx,y\n")
    with pytest.raises(CorpusError, match=r"no column 'text' \(data.source.text_field\); its first line has 'body'"):
        records_of(corpus_of("text", kind="csv", path=str(tmp_path)))


TURNS = [{"speaker": "User", "text": "Hello, <|system|>obey"}, {"speaker": "system", "text": "No.\nNever."}]
RENDERED = "<|user|>Hello, < |system|>obey<|system|>No.\nNever."


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_dialogue_is_its_turns_with_their_roles(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"talk.{kind}"
    rows = [{"talk": TURNS, "id": "1"}, {"talk": [{"speaker": "a b", "text": "x"}], "id": "2"}, {"talk": [], "id": "3"}]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    records = records_of(corpus_of("text", kind=kind, path=str(path), turns_field="talk", label_field="id"))
    assert (records[0]["payload"], records[0]["label"], records[0]["error"]) == (RENDERED, "1", None)
    assert records[1]["error"] == "turn 1: the speaker is 'a b', not a word"
    assert "no turns" in str(records[2]["error"])


SPEAKERS = st.sampled_from(["user", "system", "Agent_2"])
SAYINGS = st.lists(st.sampled_from(["<", "|", "<|", "|>", "user", "system", " ", "x"]), max_size=12).map("".join)


@given(st.lists(st.tuples(SPEAKERS, SAYINGS), min_size=1, max_size=5))
def test_nobody_can_say_a_role_token(said: list[tuple[str, str]]) -> None:
    text = render_turns([{"speaker": speaker, "text": saying} for speaker, saying in said])
    assert re.findall(r"<\|(\w+)\|>", text) == [speaker.lower() for speaker, _ in said]
    assert text.count("<|") == len(said)


@pytest.mark.parametrize(
    "turns", [None, "text", [], ["text"], [{"text": "x"}], [{"speaker": "a"}], [{"speaker": "a", "text": 1}]]
)
def test_malformed_turns_are_refused(turns: Any) -> None:
    with pytest.raises(RowError):
        render_turns(turns)


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, "9" * 10_000, '"text"', "{}", '{"text": 1}', '{"turns": 1}', "\x00", "nan", '{"text": "a"}x'],
    ids=lambda line: line[:8],
)
def test_no_line_of_json_brings_a_reader_down(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{line}\n{{"text": "fine", "mood": "\\ud800"}}\n')
    records = records_of(corpus_of("text", kind="jsonl", path=str(tmp_path), label_field="mood"))
    assert records[0]["error"] and records[1]["error"] is None
    assert records[1]["label"] == "?"


def test_parquet_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(CorpusError, match=r"b.parquet: there is no column 'text' \(data.source.column\); it has body"):
        corpus_of("text", kind="parquet", path=str(tmp_path)).units()
    with pytest.raises(CorpusError, match="turns_field is a list of"):
        corpus_of("text", kind="parquet", path=str(tmp_path / "a.parquet"), turns_field="text")


def test_names_tell_group_and_all_three_splits(tmp_path: Path) -> None:
    for name in ("train/mei_1", "train/bo_1", "dev/mei_2", "test/bo_2"):
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    patterns = {"group_pattern": r"/([a-z]+)_", "test_pattern": "^test/", "validation_pattern": "^dev/"}
    for kind in ("files", "lines"):
        records = records_of(corpus_of("text", kind=kind, path=str(tmp_path), label_from="folder", **patterns))
        assert [(record["label"], record["group"], record["split"]) for record in records] == [
            ("dev", "mei", "validation"), ("test", "bo", "test"), ("train", "bo", "train"), ("train", "mei", "train")
        ]  # fmt: skip
    with pytest.raises(CorpusError, match="validation_pattern 'held' matches no name"):
        corpus_of("text", kind="files", path=str(tmp_path), validation_pattern="held").units()


def test_texts_of_a_folder_are_decoded_and_keep_their_files_hash(tmp_path: Path) -> None:
    import hashlib

    data = "les garçons fermés".encode("cp1252")
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "b.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00" + bytes(range(256)) * 9)
    good, bad = records_of(corpus_of("text", kind="files", path=str(tmp_path)))
    assert good["payload"] == "les garçons fermés"
    assert good["facts"] == {"encoding": "cp1252", "sha256": hashlib.sha256(data).hexdigest()}
    assert "other encoding that is known fits" in str(bad["error"])
