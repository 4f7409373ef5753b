"""Units: what is new and nothing else, exact notice of what changed, and one order however they are cut."""

from __future__ import annotations

import json
import os
import random
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.corpus import open_corpus
from pipeline.data.records import Corpus, unit_identity
from pipeline.data.sources import npz, paths
from pipeline.errors import CorpusError
from tests.data.corpora import corpus_of, records_of


def write_texts(root: Path, texts: dict[str, str], suffix: str = ".txt") -> None:
    for name, text in texts.items():
        path = root / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


NAMES = st.sampled_from(["a", "b", "c", "d/e", "d/f", "z/y/x", "B", "a-1"])
TEXTS = st.dictionaries(NAMES, st.sampled_from(["one", "two words", "three\nlines\nhere", "four" * 10]), min_size=1)


@given(TEXTS, TEXTS, st.integers(1, 60), st.sampled_from(["files", "line", "file"]))
def test_units_of_a_corpus_that_grew_hold_the_new_files_alone(
    before: dict[str, str], after: dict[str, str], unit_bytes: int, kind: str
) -> None:
    source: dict[str, Any] = {"kind": "files"} if kind == "files" else {"kind": "lines", "record": kind}
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(paths.PathCorpus, "unit_bytes", unit_bytes):
        write_texts(Path(folder), before)
        old = corpus_of("text", path=folder, **source)
        known = {(name, digest) for unit in old.units() for name, digest in unit["files"]}
        assert known == {(file.name, file.digest) for file in old.files()}
        write_texts(Path(folder), after)
        new = corpus_of("text", path=folder, **source)
        units = new.units(known=known)
        read = [tuple(pair) for unit in units for pair in unit["files"]]
        assert read == [pair for file in new.files() if (pair := (file.name, file.digest)) not in known]
        assert {name for name, _ in read} == {f"{name}.txt" for name in after if before.get(name) != after[name]}
        assert {record["name"] for unit in units for record in new.read(unit)} == {name for name, _ in read}
        assert new.units(known={(file.name, file.digest) for file in new.files()}) == []
        assert (new.fingerprint() == old.fingerprint()) == ({**before, **after} == before)


def make_files(root: Path) -> dict[str, Any]:
    write_texts(root, {f"{number // 10}/{number}": f"text {number}" for number in range(40)})
    return {"kind": "files", "path": str(root)}


def make_tar(root: Path) -> dict[str, Any]:
    make_files(root / "unpacked")
    with tarfile.open(root / "a.tar.gz", "w:gz") as archive:
        archive.add(root / "unpacked", arcname=".")
    return {"kind": "tar", "path": str(root / "a.tar.gz")}


def make_lines(root: Path) -> dict[str, Any]:
    write_texts(root, {name: "".join(f"{name} {number}\n" for number in range(200)) for name in ("c", "a", "b/a")})
    return {"kind": "lines", "path": str(root)}


def make_jsonl(root: Path) -> dict[str, Any]:
    lines = {name: "".join(f'{{"text": "{name} {number}"}}\n' for number in range(200)) for name in ("z", "y")}
    write_texts(root, lines, ".jsonl")
    return {"kind": "jsonl", "path": str(root)}


def make_csv(root: Path) -> dict[str, Any]:
    write_texts(root, {name: "text\n" + "".join(f"{name} {n}\n" for n in range(200)) for name in ("z", "y")}, ".csv")
    return {"kind": "csv", "path": str(root)}


def make_parquet(root: Path) -> dict[str, Any]:
    for name in ("b", "a"):
        table = pa.table({"text": [f"{name} {number}" for number in range(100)]})
        pq.write_table(table, root / f"{name}.parquet", row_group_size=7)
    return {"kind": "parquet", "path": str(root)}


def make_npz(root: Path) -> dict[str, Any]:
    pictures = np.random.default_rng(0).integers(0, 256, (50, 4, 4), np.uint8)
    np.savez(root / "a.npz", x_train=pictures[:30], x_test=pictures[30:], y_train=np.arange(30), y_test=np.arange(20))
    return {"kind": "npz", "path": str(root / "a.npz")}


MAKERS: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "files": ("text", make_files),
    "tar": ("text", make_tar),
    "lines": ("text", make_lines),
    "jsonl": ("text", make_jsonl),
    "csv": ("text", make_csv),
    "parquet": ("text", make_parquet),
    "npz": ("image", make_npz),
}


def open_made(kind: str, root: Path) -> Corpus:
    modality, make = MAKERS[kind]
    root.mkdir(exist_ok=True)
    return corpus_of(modality, **make(root))


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units and ranges of a few hundred bytes or rows, and no file small enough to be read whole at once."""
    from pipeline.data.sources import parquet, ranges

    monkeypatch.setattr(paths, "BYTES_PER_UNIT", 100)
    monkeypatch.setattr(parquet, "BYTES_PER_UNIT", 300)
    monkeypatch.setattr(paths.PathCorpus, "unit_bytes", 100)
    monkeypatch.setattr(ranges.RangesCorpus, "range_bytes", 500)
    monkeypatch.setattr(npz, "ROWS_PER_UNIT", 8)


@pytest.mark.parametrize("kind", MAKERS)
def test_records_sorted_by_place_are_the_corpus_in_order_however_it_is_cut(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    corpus = open_made(kind, tmp_path / "corpus")
    whole = records_of(corpus)
    request.getfixturevalue("small_units")
    corpus = open_corpus(corpus.source, corpus.modality)
    units = corpus.units()
    assert len(units) > {"tar": 0, "csv": 1}.get(kind, 2)
    random.Random(0).shuffle(units)
    records = sorted(
        (record for unit in units for record in corpus.read(unit)), key=lambda record: (record["name"], record["index"])
    )
    assert [(record["origin"], record["id"]) for record in records] == [(r["origin"], r["id"]) for r in whole]
    assert len({(record["name"], record["index"]) for record in records}) == len(whole)
    assert len({record["origin"] for record in records}) == len(whole)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_files_give_units_of_the_same_identity_anywhere(kind: str, tmp_path: Path, small_units: None) -> None:
    first, second = open_made(kind, tmp_path / "one"), open_made(kind, tmp_path / "two")
    if kind == "tar":
        os.replace(tmp_path / "one/a.tar.gz", tmp_path / "two/a.tar.gz")  # gzip writes the time into its header
        first = second
    identities = [[json.dumps(unit_identity(unit), sort_keys=True) for unit in c.units()] for c in (first, second)]
    assert identities[0] == identities[1] and len(set(identities[0])) == len(identities[0])
    assert all(set(unit) >= {"kind", "files", "bytes", "guard"} for unit in first.units())
    assert sum(unit["bytes"] for unit in first.units()) > 0


def touch_later(path: Path) -> None:
    """Another byte, and for kinds that go by it another time."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_file_that_changed_after_the_fingerprint_is_never_read(
    kind: str, small: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if small:
        request.getfixturevalue("small_units")
    corpus: Any = open_made(kind, tmp_path / "corpus")
    units = corpus.units()
    name = corpus.files()[-1].name
    touch_later(Path(corpus.location.path_of(name)))
    with pytest.raises(CorpusError, match=rf"changed while it was being prepared: .*{name}; run it again"):
        for unit in units:
            list(corpus.read(unit))


@pytest.mark.parametrize("kind", ["lines", "jsonl", "csv", "parquet", "tar"])
def test_a_file_that_changes_while_it_is_read_is_noticed_at_its_end(
    kind: str, tmp_path: Path, small_units: None
) -> None:
    corpus: Any = open_made(kind, tmp_path / "corpus")
    unit = corpus.units()[-1]
    records = corpus.read(unit)
    next(records)
    os.utime(corpus.location.path_of(unit["files"][0][0]), ns=(1, 1))
    with pytest.raises(CorpusError, match="changed while it was being prepared"):
        list(records)


def test_a_file_that_cannot_be_read_is_one_bad_record_of_a_folder(tmp_path: Path) -> None:
    write_texts(tmp_path, {"a": "fine", "c": "fine too"})
    (tmp_path / "b.txt").symlink_to(tmp_path / "nowhere")
    corpus = corpus_of("text", kind="files", path=str(tmp_path))
    records = records_of(corpus)
    assert [record["error"] for record in records] == [None, "cannot be read: No such file or directory", None]
    before = corpus.fingerprint()
    (tmp_path / "nowhere").write_text("there at last")
    again = corpus_of("text", kind="files", path=str(tmp_path))
    assert again.fingerprint() != before
    assert records_of(again)[1]["payload"] == "there at last"


def test_a_limit_takes_files_evenly_and_only_new_ones_are_read(tmp_path: Path) -> None:
    write_texts(tmp_path, {f"{number:02}": f"text {number}" for number in range(20)})
    corpus = corpus_of("text", kind="files", path=str(tmp_path))
    assert [record["origin"] for record in records_of(corpus, 4)] == ["00.txt", "05.txt", "10.txt", "15.txt"]
    known = {(file.name, file.digest) for file in corpus.files()[:10]}
    assert [name for unit in corpus.units(4, known) for name, _ in unit["files"]] == ["10.txt", "15.txt"]


def test_a_corpus_is_looked_at_once(tmp_path: Path) -> None:
    write_texts(tmp_path, {"a": "one"})
    corpus = corpus_of("text", kind="files", path=str(tmp_path))
    with mock.patch.object(type(corpus), "_scan_local", side_effect=corpus._scan_local) as scan:  # type: ignore[attr-defined]
        corpus.fingerprint(), corpus.units(), corpus.files()
    assert scan.call_count == 1


def test_links_to_folders_are_not_followed_and_hidden_files_not_seen(tmp_path: Path) -> None:
    write_texts(tmp_path / "root", {"a": "one", ".git/b": "hidden", "__MACOSX/c": "hidden"})
    (tmp_path / "root/loop").symlink_to(tmp_path / "root")
    corpus = corpus_of("text", kind="files", path=str(tmp_path / "root"))
    assert [file.name for file in corpus.files()] == ["a.txt"]


def test_a_file_name_that_is_not_utf8_is_one_clear_error(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("x")
    with pytest.raises(CorpusError, match=r"the file name 'caf\\udce9.txt' is not UTF-8"):
        corpus_of("text", kind="files", path=str(tmp_path)).files()
