"""Saved Hugging Face datasets: rows by split, with pictures and sound as the bytes that were stored."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.data.sources import huggingface
from pipeline.errors import CorpusError
from tests.data.corpora import corpus_of, records_of


def png(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), grey).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="the extra 'huggingface' is not installed")


def test_splits_of_a_saved_dataset_are_given_splits(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "ROWS_PER_UNIT", 2)
    features = datasets.Features({"text": datasets.Value("string"), "mood": datasets.ClassLabel(names=["sad", "glad"])})
    splits = {
        name: datasets.Dataset.from_dict(
            {"text": [f"{name} {number}" for number in range(3)], "mood": [0, 1, 1]}, features=features
        )
        for name in ("train", "validation", "test")
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "poems")
    corpus = corpus_of("text", kind="huggingface", path=str(tmp_path / "poems"), label_field="mood")
    assert [unit["count"] for unit in corpus.units()] == [2, 1] * 3
    records = records_of(corpus)
    assert [record["payload"] for record in records] == [f"{name} {number}" for name in splits for number in range(3)]
    assert [record["split"] for record in records] == ["train"] * 3 + ["validation"] * 3 + ["test"] * 3
    assert [record["label"] for record in records[:3]] == ["sad", "glad", "glad"]
    assert [record["index"] for record in records] == list(range(9)) and len({r["name"] for r in records}) == 1
    assert records[4]["origin"] == "poems#validation:1"


def test_pictures_of_a_saved_dataset_come_as_they_were_stored(datasets: Any, tmp_path: Path) -> None:
    stored = [{"bytes": png(grey), "path": None} for grey in (1, 2)]
    features = datasets.Features({"picture": datasets.Image()})
    datasets.Dataset.from_dict({"picture": [*stored, None]}, features=features).save_to_disk(tmp_path / "pictures")
    corpus = corpus_of("image", kind="huggingface", path=str(tmp_path / "pictures"), column="picture")
    records = records_of(corpus)
    assert [record["payload"] for record in records] == [png(1), png(2), b""]
    assert [record["split"] for record in records] == [None] * 3
    assert records[2]["error"] == "column 'picture' is null"
    with pytest.raises(CorpusError, match=r"data\.codec is for audio"):
        corpus_of("audio", kind="huggingface", path=str(tmp_path / "pictures"), column="picture")
    with pytest.raises(CorpusError, match="there is no column 'image'"):
        corpus_of("image", kind="huggingface", path=str(tmp_path / "pictures"), column="image")


def test_sound_of_a_saved_dataset_comes_as_it_was_stored(datasets: Any, tmp_path: Path) -> None:
    features = datasets.Features({"sound": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    dataset = datasets.Dataset.from_dict({"sound": [{"bytes": b"RIFF", "path": "a.wav"}]}, features=features)
    dataset.cast_column("sound", datasets.Audio(decode=False)).save_to_disk(tmp_path / "sounds")
    corpus = corpus_of("audio", kind="huggingface", path=str(tmp_path / "sounds"), column="sound")
    assert [record["payload"] for record in records_of(corpus)] == [b"RIFF"]


def test_a_saved_dataset_that_changed_is_not_read(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "poems")
    corpus = corpus_of("text", kind="huggingface", path=str(tmp_path / "poems"))
    units = corpus.units()
    before = corpus.fingerprint()
    datasets.Dataset.from_dict({"text": ["b", "c"]}).save_to_disk(tmp_path / "poems")
    with pytest.raises(CorpusError, match="changed while it was being prepared"):
        list(corpus.read(units[0]))
    assert corpus_of("text", kind="huggingface", path=str(tmp_path / "poems")).fingerprint() != before


def test_a_folder_that_is_no_dataset_is_one_clear_error(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(CorpusError, match="cannot be read as a saved dataset"):
        corpus_of("text", kind="huggingface", path=str(tmp_path))


def test_without_the_extra_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CorpusError, match=r"pip install 'atelier\[huggingface\]'"):
        corpus_of("text", kind="huggingface", path=str(tmp_path))
