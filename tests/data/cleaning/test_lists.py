"""The opt-out list and the block list: what is on them, and what is said of a wrong line."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest

from pipeline.data.cleaning.lists import BlockList, Lists, OptOut, read_block_list, read_lists, read_opt_out
from pipeline.data.records import content_id
from pipeline.errors import SpecError
from pipeline.spec import CleaningSpec, TextCleaningSpec

TEXT = "a text whose author wants it out"
SHA256 = hashlib.sha256(TEXT.encode()).hexdigest()


def write(folder: Path, content: str) -> str:
    path = folder / "list.txt"
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_a_record_is_found_by_its_id_its_hash_and_its_text(tmp_path: Path) -> None:
    for line in (SHA256, SHA256.upper(), content_id(TEXT)):
        listed = read_opt_out(write(tmp_path, f"# asked for in May\n{line}  # by mail\n\n"))
        assert listed.has(content_id(TEXT), "", "x.txt")
        assert listed.has("0" * 16, SHA256, "x.txt")
        assert listed.has_text(TEXT)
        assert not listed.has("0" * 16, "", "x.txt")


@pytest.mark.parametrize(
    ("listed", "origin", "has"),
    [
        ("notes.txt", "notes.txt", True),
        ("notes.txt", "notes.txt:17", True),
        ("notes.txt", "notes.txt#x", True),
        ("notes.txt", "old/notes.txt", False),
        ("notes.txt", "notes.txt.bak", False),
        ("notes.txt:17", "notes.txt:17", True),
        ("notes.txt:17", "notes.txt:170", False),
        ("a.tar", "a.tar#x/y.png", True),
        ("a.tar#x/y.txt", "a.tar#x/y.txt:3", True),
        ("a.tar#x/", "a.tar#x/y.png", True),
        ("letters/", "letters/1.txt:4", True),
        ("letters/", "old/letters/1.txt", False),
        ("./deadbeef", "deadbeef", True),
        ("a b.txt", "a b.txt:1", True),
    ],
)
def test_an_origin_stands_for_itself_and_what_lies_in_it(tmp_path: Path, listed: str, origin: str, has: bool) -> None:
    assert read_opt_out(write(tmp_path, listed)).has("0" * 16, "", origin) is has


@pytest.mark.parametrize(
    "line", ["deadbeef", "0" * 40, "0" * 63, "/home/a.txt", "s3://b/a", "a\\b.txt", "../a", "a\tb"]
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(SpecError, match=r"1 line is no record id.*\n  line 2: "):
        read_opt_out(write(tmp_path, f"notes.txt\n{line}\n"))


def test_the_digest_is_of_the_entries_not_of_the_file(tmp_path: Path) -> None:
    one = read_opt_out(write(tmp_path, f"{SHA256}\nb.txt\na.txt\n"))
    two = read_opt_out(write(tmp_path, f"# why\na.txt\n./b.txt\n{SHA256[:16].upper()}\n"))
    assert one.digest == two.digest != OptOut().digest
    assert one.digest != read_opt_out(write(tmp_path, "a.txt\nb.txt\n")).digest
    assert BlockList(frozenset({"a"})).digest != BlockList(frozenset({"b"})).digest


def test_lists_are_read_from_uris_and_missing_ones_named(tmp_path: Path) -> None:
    path = write(tmp_path, "Bad  Word\n")
    lists = read_lists(CleaningSpec(text=TextCleaningSpec(block_list=f"file://{path}")))
    assert lists.block_list.phrases == {"bad word"}
    assert not lists.opt_out
    with pytest.raises(SpecError, match=r"data\.cleaning\.opt_out .*no such file"):
        read_lists(CleaningSpec(opt_out=str(tmp_path / "none.txt")))
    with pytest.raises(SpecError, match="no phrase"):
        read_block_list(write(tmp_path, "\n \n"))
    Path(path).write_bytes(b"fine\nnot \xff\n")
    with pytest.raises(SpecError, match="line 2 is not UTF-8"):
        read_block_list(path)


@pytest.mark.parametrize(
    ("phrase", "text", "has"),
    [
        ("bad word", "A BAD\n word.", True),
        ("bad word", "bad words", False),
        ("bad word", "word bad", False),
        ("ass", "assess the class", False),
        ("ass", "(Ass)", True),
        ("c++", "c++ code", True),
        ("c++", "c code", False),
        (":-)", "so :-) it", True),
        ("straße", "DIE STRASSE", True),
        ("坏话", "他说坏话了", True),
        ("坏话", "坏的话", False),
        ("e\u0301t\u00e9", "l'\u00e9t\u00e9", True),
    ],
)
def test_phrases_are_whole_words_in_any_case(tmp_path: Path, phrase: str, text: str, has: bool) -> None:
    found = read_block_list(write(tmp_path, phrase)).find(text)
    assert (found is not None) is has


def test_a_phrase_among_thousands_is_found_and_lists_travel() -> None:
    phrases = BlockList(frozenset(f"phrase number {number}" for number in range(5000)))
    travelled = pickle.loads(pickle.dumps(Lists(block_list=phrases)))
    for block_list in (phrases, travelled.block_list):
        assert block_list.find("this has Phrase  number 4711 in it") == "phrase number 4711"
        assert block_list.find("this has phrase number 5000 in it") is None
