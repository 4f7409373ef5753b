"""Big files in ranges: every record once, in order and at its line, wherever the cuts fall."""

from __future__ import annotations

import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.data.records import Corpus, Record
from pipeline.data.sources import paths
from tests.data.corpora import corpus_of

PARTS = st.sampled_from(
    ["a", "bc", "é", "春", "🙂", "\n", "\n\n", "\r\n", "\r", " ", "\t", " \n", "\u2028", "\x0c", "\ufeff"]
)
CONTENT = st.lists(PARTS, max_size=60).map("".join)


def in_ranges(corpus: Corpus, range_bytes: int, piece_bytes: int) -> list[Record]:
    """The corpus's records where ranges, pieces and what counts as a small file are as small as told."""
    corpus.range_bytes = range_bytes  # type: ignore[attr-defined]
    with mock.patch.object(paths, "PIECE_BYTES", piece_bytes), mock.patch.object(paths, "BYTES_PER_UNIT", 0):
        units = json.loads(json.dumps(corpus.units()))
        (size,) = [file.size for file in corpus.files()]
        if size > range_bytes:
            assert [unit["start"] for unit in units] == [0, *(unit["stop"] for unit in units)][:-1]
            assert units[-1]["stop"] == size
            assert all(unit["stop"] - unit["start"] >= range_bytes for unit in units[:-1])
        records = []
        for unit in units:
            read = list(corpus.read(unit))
            assert unit.get("count", len(read)) == len(read)
            records.extend(read)
        return records


def lines_of(text: str) -> list[tuple[int, str]]:
    return [(number, line.rstrip("\n")) for number, line in enumerate(io.StringIO(text, newline=None), start=1)]


def paragraphs_of(text: str) -> list[tuple[int, str]]:
    """An independent way: split the whole text where lines with nothing but spaces are."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    found, line = [], 1
    for part in re.split(r"((?:(?<=\n)|\A)[ \t]*(?:\n|\Z))", text):
        if part.strip(" \t\n"):
            found.append((line, part.removesuffix("\n")))
        line += part.count("\n")
    return found


@settings(max_examples=150)
@given(CONTENT, st.integers(1, 40), st.integers(1, 50), st.sampled_from(["line", "paragraph"]))
def test_ranges_of_a_text_file_give_what_the_whole_file_gives(text: str, size: int, piece: int, record: str) -> None:
    assume(text != "\ufeff")  # a mark alone is no line, which no range of 32 MiB has to know
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.txt")
        path.write_bytes(text.encode())
        records = in_ranges(corpus_of("text", kind="lines", path=str(path), record=record), size, piece)
    expected = (lines_of if record == "line" else paragraphs_of)(text.removeprefix("\ufeff"))
    assert [(record["index"], record["payload"]) for record in records] == expected
    assert all(record["origin"] == f"a.txt:{record['index']}" and record["error"] is None for record in records)


@settings(max_examples=80)
@given(st.lists(st.text(max_size=6), max_size=12), st.booleans(), st.integers(1, 60), st.integers(1, 50))
def test_ranges_of_json_lines_give_what_the_whole_file_gives(
    texts: list[str], ended: bool, size: int, piece: int
) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii="\ud800" <= max(text, default="") <= "\udfff") for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_bytes("\n\n".join(lines).encode() + b"\n" * ended)
        records = in_ranges(corpus_of("text", kind="jsonl", path=str(path)), size, piece)
    assert [(record["index"], record["payload"]) for record in records] == [
        (2 * number + 1, text) for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "utf-16", "utf-16-le"])
def test_ranges_know_the_encoding_that_was_found_in_the_whole_file(encoding: str, tmp_path: Path) -> None:
    text = "plain words\n" * 50 + ("日本語のテキスト\n" if encoding == "cp932" else "les garçons fermés\n") * 20
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    corpus: Any = corpus_of("text", kind="lines", path=str(tmp_path))
    corpus.range_bytes = 100
    units = corpus.units()
    assert (len(units) > 5) == (not encoding.startswith("utf-16"))
    records = [record for unit in units for record in corpus.read(unit)]
    assert [record["payload"] for record in records] == text.splitlines()
    assert {record["facts"]["encoding"] for record in records} == {encoding}


def test_a_damaged_line_of_a_big_utf8_file_is_the_only_error(tmp_path: Path) -> None:
    lines = [*["déjà vu".encode()] * 30, b"caf\xe9", *["déjà vu".encode()] * 30]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    corpus: Any = corpus_of("text", kind="lines", path=str(tmp_path))
    corpus.range_bytes = 64
    errors = [record["error"] for unit in corpus.units() for record in corpus.read(unit)]
    assert errors[30] == "not utf-8: byte 0xe9 at character 3; set data.source.encoding"
    assert errors[:30] + errors[31:] == [None] * 60


def test_packed_files_are_never_cut(tmp_path: Path) -> None:
    import gzip

    text = "".join(f"line {number}\n" for number in range(500))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    corpus: Any = corpus_of("text", kind="lines", path=str(tmp_path))
    corpus.range_bytes = 10
    (unit,) = corpus.units()
    assert [record["payload"] for record in corpus.read(unit)] == text.splitlines()
