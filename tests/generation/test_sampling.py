from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_bundles import MODALITIES, make_bundle, tiny_manifest, tiny_spec

from pipeline.errors import RegistryError, SpecError, StorageError
from pipeline.generation import sampling
from pipeline.generation.sampling import SamplingOptions, draw, encode_prompt, load_bundle, overview, save_bundle


@pytest.fixture(scope="module", params=MODALITIES)
def folder(request: Any, tmp_path_factory: Any) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), request.param)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: Any) -> Path:
    return make_bundle(tmp_path_factory.mktemp("text"), "text")


def same(a: Any, b: Any) -> bool:
    return a == b if isinstance(a, str) else bool(np.array_equal(a, b))


def test_a_bundle_comes_back_as_it_was(folder: Path) -> None:
    bundle = load_bundle(folder)
    weights = {name: tensor.clone() for name, tensor in bundle.model.state_dict().items()}
    again = load_bundle(save_bundle(folder.with_name(folder.name + "-again"), bundle.spec, bundle.manifest, weights))
    assert again.spec == bundle.spec
    assert again.manifest == bundle.manifest
    assert again.weights_sha256 == bundle.weights_sha256
    assert not again.model.training
    assert not any(parameter.requires_grad for parameter in again.model.parameters())


def test_the_same_seed_draws_the_same_and_another_seed_another(folder: Path) -> None:
    bundle = load_bundle(folder)
    first, second, other = draw(bundle, 5, 7), draw(load_bundle(folder), 5, 7), draw(bundle, 5, 8)
    assert len(first) == 5
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not all(same(a, b) for a, b in zip(first, other, strict=True))


def test_drawing_leaves_the_global_randomness_alone(folder: Path) -> None:
    bundle = load_bundle(folder)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(bundle, 2, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_samples_are_raw_examples_of_the_modality(folder: Path) -> None:
    bundle = load_bundle(folder)
    raw = draw(bundle, 1, 0)[0]
    if bundle.layout.modality == "text":
        assert isinstance(raw, str)
        assert raw
    elif bundle.layout.modality == "image":
        assert raw.shape == (8, 8, 1)
        assert raw.dtype == np.uint8
    else:
        assert raw.shape == (256,)
        assert np.abs(raw).max() <= 1


def test_chunks_of_one_call_differ_and_progress_reaches_the_count(folder: Path) -> None:
    seen: list[int] = []
    raws = draw(load_bundle(folder), 5, 3, batch_size=2, progress=lambda stage, done, total, note: seen.append(done))
    assert seen == [2, 4, 5]
    assert not same(raws[0], raws[2])


def test_a_prompt_stands_at_the_start_of_each_text(text_folder: Path) -> None:
    bundle = load_bundle(text_folder)
    options = encode_prompt(bundle, "To be", SamplingOptions(top_k=3, temperature=0.5))
    assert options.top_k == 3
    texts = draw(bundle, 3, 1, options)
    assert all(text.startswith("To be") and len(text) > len("To be") for text in texts)


def test_a_prompt_in_a_document_carries_no_special_tokens(tmp_path: Path) -> None:
    codec = {"kind": "characters", "length": 24, "packing": "documents"}
    data = {"source": {"kind": "lines", "path": "poem.txt"}, "codec": codec}
    bundle = load_bundle(make_bundle(tmp_path, "text", data=data))
    options = encode_prompt(bundle, "To be")
    assert len(options.prompt) == len("To be")
    assert draw(bundle, 2, 1, options)[0].startswith("To be")
    with pytest.raises(SpecError, match="fill the 24 tokens"):
        encode_prompt(bundle, "To be, or not to be, that is")


def test_an_unknown_character_of_a_prompt_is_named(text_folder: Path) -> None:
    with pytest.raises(SpecError, match="never seen in training"):
        encode_prompt(load_bundle(text_folder), "Ω")


def test_pictures_take_no_prompt(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="continues no prompt"):
        encode_prompt(load_bundle(make_bundle(tmp_path, "image")), "a seven")


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "count 0: at least 1"),
        (1, {"temperature": 0.0}, "temperature 0.0: above 0"),
        (1, {"top_p": 1.5}, "top_p 1.5: above 0, at most 1"),
        (1, {"top_k": 0, "length": 0}, "top_k 0.*length 0"),
    ],
)
def test_an_impossible_wish_says_what_is_allowed(text_folder: Path, count: int, options: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        draw(load_bundle(text_folder), count, 0, SamplingOptions(**options))


@pytest.mark.parametrize("name", [sampling.WEIGHTS, sampling.SPEC, sampling.MANIFEST])
def test_a_changed_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_bundle(tmp_path, "image")
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(RegistryError, match=f"{name}.*was changed after training"):
        load_bundle(folder)


def test_a_missing_file_and_an_empty_folder_are_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="not a complete bundle"):
        load_bundle(tmp_path)
    folder = make_bundle(tmp_path / "bundle", "image")
    (folder / sampling.WEIGHTS).unlink()
    with pytest.raises(RegistryError, match=r"cannot be read.*model\.safetensors"):
        load_bundle(folder)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    spec = tiny_spec("image")
    save_bundle(tmp_path, spec, tiny_manifest(spec), {"stranger": torch.zeros(1)})
    with pytest.raises(RegistryError, match="cannot build the model"):
        load_bundle(tmp_path)


def test_a_bundle_of_a_later_format_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, "image")
    record = json.loads((folder / sampling.CHECKSUMS).read_bytes())
    (folder / sampling.CHECKSUMS).write_text(json.dumps({**record, "format_version": 99}))
    with pytest.raises(RegistryError, match="format 99"):
        load_bundle(folder)


def test_a_bundle_whose_set_has_another_format_says_what_to_do_once(tmp_path: Path) -> None:
    spec = tiny_spec("image")
    save_bundle(tmp_path, spec, {**tiny_manifest(spec), "format_version": 1}, {})
    with pytest.raises(RegistryError, match="has format 1, this version reads") as refused:
        load_bundle(tmp_path)
    assert str(refused.value).count("the version that made it") == 1


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    good = load_bundle(make_bundle(tmp_path / "good", "image"))
    weights = {name: torch.full_like(tensor, float("nan")) for name, tensor in good.model.state_dict().items()}
    bundle = load_bundle(save_bundle(tmp_path / "bad", good.spec, good.manifest, weights))
    with pytest.raises(RegistryError, match="not finite"):
        draw(bundle, 1, 0)


def test_a_full_disk_leaves_no_bundle_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        make_bundle(tmp_path / "bundle", "image")
    monkeypatch.undo()
    with pytest.raises(RegistryError, match="not a complete bundle"):
        load_bundle(tmp_path / "bundle")


def test_the_overview_of_pictures_is_a_grid_of_enlarged_pictures() -> None:
    pictures = [np.full((28, 28, 3), 10 * i, np.uint8) for i in range(9)]
    sheet = np.asarray(Image.open(io.BytesIO(overview(pictures, "image") or b"")))
    cell = 2 * 28 + 2
    assert sheet.shape == (3 * cell + 2, 3 * cell + 2, 3)
    assert sheet[cell + 10, 2 * cell + 10].tolist() == [50, 50, 50]


def test_the_overview_of_sounds_repeats_and_text_has_none() -> None:
    sounds = [np.sin(np.arange(2000) * 0.1 * (i + 1)).astype(np.float32) for i in range(3)]
    first = overview(sounds, "audio", 8000)
    assert first is not None
    assert first == overview(sounds, "audio", 8000)
    assert Image.open(io.BytesIO(first)).size[0] == 900
    assert overview(["words"], "text") is None
    assert overview([], "image") is None


def test_the_overview_takes_silence_and_a_sound_shorter_than_a_window() -> None:
    assert overview([np.zeros(40, np.float32)], "audio", 8000) is not None
