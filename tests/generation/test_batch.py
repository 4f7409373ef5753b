from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tiny_bundles import MODALITIES, make_bundle

from pipeline.errors import RegistryError, SpecError
from pipeline.generation.batch import generate
from pipeline.generation.sampling import load_bundle

SUFFIXES = {"text": ".txt", "image": ".png", "audio": ".wav"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "provenance.json"}


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, modality: str) -> None:
    folder = str(make_bundle(tmp_path / "bundle", modality))
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        generate(folder, 3, seed, tmp_path / name)
    first = contents(tmp_path / "a")
    samples = [f"tiny-{modality}-0000{i}{SUFFIXES[modality]}" for i in range(3)]
    assert sorted(first) == sorted([*samples, *(["overview.png"] if modality != "text" else [])])
    assert contents(tmp_path / "b") == first
    assert contents(tmp_path / "c") != first


def test_provenance_names_the_weights_the_corpus_and_every_file(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", "image")
    returned = generate(str(folder), 2, 7, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "provenance.json").read_bytes())
    assert record == returned
    assert record["weights_sha256"] == load_bundle(folder).weights_sha256
    assert record["licence"] == "CC0-1.0"
    assert record["corpus_fingerprint"] == "f" * 64
    assert record["prepared"] == "0123456789abcdef"
    assert record["seed"] == 7
    assert record["versions"]["torch"]
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in contents(tmp_path / "out").items()}
    assert record["files"] == sha256


def test_a_prompt_is_recorded_as_it_was_typed(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", "text")
    record = generate(str(folder), 1, 0, tmp_path / "out", prompt="To be")
    assert record["options"]["prompt"] == "To be"
    assert (tmp_path / "out" / "tiny-text-00000.txt").read_text().startswith("To be")


def test_a_second_call_replaces_the_files_of_the_first(tmp_path: Path) -> None:
    folder = str(make_bundle(tmp_path / "bundle", "image"))
    generate(folder, 3, 0, tmp_path / "out")
    generate(folder, 1, 0, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["overview.png", "tiny-image-00000.png"]


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    folder = str(make_bundle(tmp_path / "bundle", "image"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("ten years of work")
    with pytest.raises(SpecError, match=r"'thesis\.txt'.*did not write"):
        generate(folder, 1, 0, out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_folder_without_a_bundle_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="models:/NAME@champion"):
        generate(str(tmp_path / "nothing"), 1, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()
