"""Corpora: each source gives its records, and says clearly what is wrong with it."""

from __future__ import annotations

import lzma
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data.records import Selection
from pipeline.errors import CorpusError
from tests.data.corpora import corpus_of, records_of


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (4, 4), i).save(root / split / label / f"{i}.png")
    (root / "README.md").write_text("about")
    (root / ".hidden.png").write_bytes(b"")
    return root


def as_tar(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        archive.add(folder, arcname=".")
    return path


@pytest.mark.parametrize("kind", ["files", "tar"])
def test_files_and_tars_give_the_same_records(kind: str, pictures: Path, tmp_path: Path) -> None:
    path = pictures if kind == "files" else as_tar(pictures, tmp_path / "pictures.tar.xz")
    corpus = corpus_of("image", kind=kind, path=str(path), label_from="folder", test_pattern="^test/")
    records = records_of(corpus)
    assert Counter((record["split"], record["label"]) for record in records) == dict.fromkeys(
        [("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "dog")], 3
    )
    assert all(record["error"] is None and record["payload"][:4] == b"\x89PNG" for record in records)
    assert {record["origin"].rsplit("#")[-1] for record in records} == {
        f"{split}/{label}/{i}.png" for split in ("train", "test") for label in ("cat", "dog") for i in range(3)
    }


def test_a_label_pattern_reads_the_name(pictures: Path) -> None:
    corpus = corpus_of("image", kind="files", path=str(pictures), label_pattern=r"/(\d)\.png$")
    assert {record["label"] for record in records_of(corpus)} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("glob", "count"), [("**/*.png", 12), ("train/**/*", 6), ("*/cat/*", 6), ("*.png", 0), ("**/1.png", 4)]
)
def test_a_glob_chooses_files_at_its_depth(glob: str, count: int, pictures: Path) -> None:
    if count == 0:
        with pytest.raises(CorpusError, match=r"matches data\.source\.glob"):
            corpus_of("image", kind="files", path=str(pictures), glob=glob).units()
    else:
        assert len(records_of(corpus_of("image", kind="files", path=str(pictures), glob=glob))) == count


def test_lines_are_records_or_the_file_is_one(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("anna\r\nbo\n\nclaire")
    assert [r["payload"] for r in records_of(corpus_of("text", kind="lines", path=str(path)))] == [
        "anna", "bo", "", "claire"
    ]  # fmt: skip
    whole = corpus_of("text", kind="lines", path=str(path), record="file")
    assert whole.single_document
    assert [r["payload"] for r in records_of(whole)] == ["anna\nbo\n\nclaire"]


def test_a_wrong_encoding_is_an_error_of_its_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "old.txt"
    path.write_bytes("plain\ncaf\xe9\nplain too".encode("latin-1"))
    named = corpus_of("text", kind="lines", path=str(path), encoding="utf-8")
    errors = [record["error"] for record in records_of(named)]
    assert errors == [None, "not utf-8: byte 0xe9 at character 3; set data.source.encoding", None]
    right = corpus_of("text", kind="lines", path=str(path), encoding="latin-1")
    assert [record["payload"] for record in records_of(right)] == ["plain", "caf\xe9", "plain too"]


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".bz2"])
def test_json_lines_are_read_also_when_packed(suffix: str, tmp_path: Path) -> None:
    import bz2
    import gzip

    path = tmp_path / f"poems.jsonl{suffix}"
    opener: Any = {"": open, ".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}[suffix]
    with opener(path, "wb") as file:
        file.write('{"text": "春", "author": "孟"}\nnonsense\n{"body": "x"}\n'.encode())
    records = records_of(corpus_of("text", kind="jsonl", path=str(path), label_field="author"))
    assert (records[0]["payload"], records[0]["label"]) == ("春", "孟")
    assert "not a line of JSON" in str(records[1]["error"])
    assert "no text under 'text' (it has body)" in str(records[2]["error"])


def test_a_packed_file_that_is_cut_short_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "poems.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"text": "a poem"}\n' * 5000)[:-40])
    with pytest.raises(CorpusError, match="damaged or cut short"):
        records_of(corpus_of("text", kind="jsonl", path=str(path)))


def test_a_tar_that_is_cut_short_is_one_clear_error(pictures: Path, tmp_path: Path) -> None:
    path = as_tar(pictures, tmp_path / "pictures.tar.xz")
    whole = path.read_bytes()
    for share in (0.2, 0.5, 0.8):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CorpusError, match="cut short"):
            records_of(corpus_of("image", kind="tar", path=str(path)))


def test_parquet_gives_texts_and_encoded_pictures(tmp_path: Path, pictures: Path) -> None:
    texts = pa.table({"body": ["a", None, "c"], "stars": [1, 2, 3]})
    pq.write_table(texts, tmp_path / "reviews.parquet", row_group_size=2)
    corpus = corpus_of(
        "text", kind="parquet", path=str(tmp_path / "reviews.parquet"), column="body", label_field="stars"
    )
    records = records_of(corpus)
    assert [record["payload"] for record in records] == ["a", b"", "c"]
    assert [record["label"] for record in records] == ["1", None, "3"]
    assert records[1]["error"] == "column 'body' is null"
    assert records[2]["origin"] == "reviews.parquet:2"
    data = (pictures / "train/cat/0.png").read_bytes()
    pq.write_table(pa.table({"image": [{"bytes": data, "path": "x"}]}), tmp_path / "pictures.parquet")
    corpus = corpus_of("image", kind="parquet", path=str(tmp_path / "pictures.parquet"), column="image")
    assert records_of(corpus)[0]["payload"] == data


def test_npz_gives_pictures_with_labels_and_splits(tmp_path: Path) -> None:
    path = tmp_path / "digits.npz"
    pictures = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
    np.savez_compressed(
        path, x_train=pictures, y_train=np.arange(5), x_test=pictures[:2], y_test=np.array([7, 8], np.uint8)
    )
    records = records_of(corpus_of("image", kind="npz", path=str(path)))
    assert [(record["split"], record["label"]) for record in records] == [
        *(("train", str(i)) for i in range(5)), ("test", "7"), ("test", "8")
    ]  # fmt: skip
    np.testing.assert_array_equal(np.stack([np.asarray(record["payload"]) for record in records[:5]]), pictures)
    assert len({record["id"] for record in records}) == 5


@pytest.mark.parametrize(
    ("name", "modality", "count", "labels"),
    [
        ("digits", "image", 5000, 10),
        ("pydoc", "text", None, 1),
        ("sentences", "text", None, 1),
        ("plucked", "audio", 1200, 24),
    ],
)
def test_builtin_corpora_are_the_same_each_time(name: str, modality: Any, count: int | None, labels: int) -> None:
    corpus = corpus_of(modality, kind="builtin", name=name)
    records = records_of(corpus)
    assert len(records) == (count or corpus.units()[0]["count"])
    assert len({record["label"] for record in records}) == labels
    assert len({record["id"] for record in records}) >= len(records) - 1
    assert corpus.licence != "not stated"
    limited = records_of(corpus, 7)
    assert [record["id"] for record in limited] == [records[i * len(records) // 7]["id"] for i in range(7)]


def test_plucked_notes_have_the_pitch_of_their_label() -> None:
    from pipeline.data.builtin import PITCHES, PLUCKED_LOWEST_HZ

    assert (PITCHES[0], PITCHES[3], PITCHES[12], PITCHES[-1]) == ("A2", "C3", "A3", "G#4")
    for record in records_of(corpus_of("audio", kind="builtin", name="plucked"), 24 * 5):
        samples = np.asarray(record["payload"])
        assert np.abs(samples).max() < 1
        frequency = PLUCKED_LOWEST_HZ * 2 ** (PITCHES.index(str(record["label"])) / 12)
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 32768))
        peak = spectrum.argmax() * 8000 / 32768
        assert abs(peak / frequency - max(1, round(peak / frequency))) < 0.03 * max(1, round(peak / frequency))


@pytest.mark.parametrize("total", [1, 2, 7, 100, 1001])
def test_a_selection_takes_just_as_many_as_its_limit(total: int) -> None:
    for limit in {1, max(1, total // 3), total}:
        selection = Selection(limit, total)
        assert [p for p in range(total) if p in selection] == [i * total // limit for i in range(limit)]


def test_a_limit_is_spread_over_files_and_units(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i}\n" for i in range(10)))
    records = records_of(corpus_of("text", kind="lines", path=str(tmp_path)), 6)
    assert [record["payload"] for record in records] == ["a0", "a5", "b0", "b5", "c0", "c5"]


def test_the_fingerprint_follows_contents_and_not_the_place(tmp_path: Path) -> None:
    prints = []
    for folder, text in (("one", "same"), ("two", "same"), ("three", "other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(text)
        prints.append(corpus_of("text", kind="lines", path=str(tmp_path / folder)).fingerprint())
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("modality", "source", "message"),
    [
        ("image", {"kind": "files", "path": "picture"}, "no such file or folder; did you mean .*pictures"),
        ("image", {"kind": "files", "path": "empty"}, r"it holds nothing"),
        ("audio", {"kind": "files", "path": "pictures"}, r"12 \.png"),
        ("audio", {"kind": "builtin", "name": "digits"}, "data.codec is for audio"),
        ("image", {"kind": "lines", "path": "pictures/README.md"}, "data.codec is for image"),
        ("text", {"kind": "npz", "path": "pictures/README.md"}, "data.codec is for text"),
        ("image", {"kind": "npz", "path": "pictures/README.md"}, "cannot be read as a NumPy archive"),
        ("text", {"kind": "jsonl", "path": "pictures"}, r"ends with \.jsonl"),
        ("text", {"kind": "lines", "path": "pictures/README.md", "encoding": "utf-99"}, "unknown"),
        ("text", {"kind": "parquet", "path": "pictures/README.md", "column": "x"}, "cannot be read as Parquet"),
        ("image", {"kind": "tar", "path": "pictures/README.md"}, "not a tar file"),
        ("image", {"kind": "tar", "path": "pictures"}, "reads one file"),
        ("image", {"kind": "files", "path": "pictures", "label_pattern": r"label-(\d)"}, "matches no name"),
    ],
)
def test_bad_input_is_one_clear_error(
    modality: Any, source: dict[str, Any], message: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    (pictures.parent / "empty").mkdir()
    with pytest.raises(CorpusError, match=message):
        records_of(corpus_of(modality, **source))


def test_an_npz_of_another_kind_says_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, x_train=np.zeros((3, 4)), images=np.zeros(1))
    with pytest.raises(CorpusError, match=r"'x_train' is float64 \[3, 4\]"):
        corpus_of("image", kind="npz", path=str(path))
    with pytest.raises(CorpusError, match=r"no array 'pictures'.*it has x_train, images"):
        corpus_of("image", kind="npz", path=str(path), train="pictures")
