"""Networks from TorchScript files: only the one with the checksum is loaded, and its input is as described."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.data.layout import Layout
from pipeline.errors import SpecError
from pipeline.evaluation import evaluate as room
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.extractors.torchscript import as_input, find_torchscript
from pipeline.evaluation.features import find_extractors
from pipeline.spec import NetworkInputSpec
from tests.evaluation.conftest import MLP, PICTURES, SOUNDS, pictures, tones

VAE = {"kind": "vae", "latent_size": 4}


class Means(nn.Module):
    """The mean of each quarter of each channel, or of a sound: features in closed form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 2:
            return x.view(x.shape[0], 4, -1).abs().mean(2)
        return nn.functional.adaptive_avg_pool2d(x, 2)


@pytest.fixture
def network(tmp_path: Path) -> dict:
    """The extractor's part of a spec, and its file."""
    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(str(path))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    size = {"size": [4, 4], "channels": 3, "mean": [0.0], "deviation": [1.0], "sample_rate_hz": 2000}
    return {"kind": "torchscript", "path": str(path), "sha256": sha256, "input": size}


def test_its_features_are_those_of_the_resized_pictures(network, spec_of, prepare_small):
    spec = spec_of(PICTURES, VAE, MLP, extractor=network)
    prepared = prepare_small(spec, {"train": [(raw, None) for raw, _ in pictures(9)], "test": pictures(9)})
    extractor, classifier = find_extractors(spec, prepared)
    assert classifier is None and extractor.accuracy is None
    x = prepared.layout.to_model(prepared.load_split("test").x)
    expected = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1).double()
    # Area by area the antialiased picture of half the size has nearly the same means.
    torch.testing.assert_close(extractor.features(x), expected.repeat(1, 3), atol=0.1, rtol=0)
    assert extractor.name == "torchscript means.pt, 4×4×3 bilinear, mean and deviation 0 1"
    assert extractor.sha256 == network["sha256"]


def test_sound_is_resampled(network, spec_of, prepare_small):
    spec = spec_of(SOUNDS, VAE, MLP, extractor=network)
    prepared = prepare_small(spec, {"train": [(raw, None) for raw, _ in tones(9)], "test": tones(9)})
    extractor, _ = find_extractors(spec, prepared)
    x = prepared.layout.to_model(prepared.load_split("test").x)
    assert as_input(x, prepared.layout, spec.evaluation.extractor.input).shape == (9, 256)
    low = extractor.features(x)[1::2]
    # A sine of amplitude 1/2 has a mean magnitude of 1/pi.
    torch.testing.assert_close(low[:, 1:3], torch.full((4, 2), 0.3183, dtype=torch.float64), atol=0.02, rtol=0)


def test_channels_are_repeated_and_standardised():
    how = NetworkInputSpec(size=(8, 8), mean=(0.5, 0.25, 0.0), deviation=(0.5, 1.0, 2.0))
    x = torch.rand(3, 1, 8, 8)
    found = as_input(x, Layout("image", "signal", (1, 8, 8), "uint8", "bernoulli"), how)
    torch.testing.assert_close(found, torch.cat([(x - 0.5) / 0.5, x - 0.25, x / 2], 1))


def test_all_scores_are_taken_in_its_space(network, spec_of, prepare_small, bundle_of, short_extractors, monkeypatch):
    monkeypatch.setattr(room.ray, "is_initialized", lambda: False)
    spec = spec_of(PICTURES, VAE, MLP, extractor=network)
    prepared = prepare_small(spec, {"train": pictures(60), "test": pictures(60, seed=1)})
    scores = evaluate(spec, prepared, bundle_of(spec, prepared))
    assert scores["test/kid"].protocol["extractor_sha256"] == network["sha256"]
    # Classes are still those of the corpus.
    assert scores["test/inception_score"].protocol["extractor"].startswith("classifier-")
    assert not any("fid" in key for key in scores)
    # It is kept beside the set: the file may go.
    Path(network["path"]).unlink()
    assert evaluate(spec, prepared, bundle_of(spec, prepared)) == scores


def test_a_file_that_is_absent_or_another_or_none_is_refused_unread(network, spec_of, prepare_small, monkeypatch):
    spec = spec_of(PICTURES, VAE, MLP, extractor=network)
    prepared = prepare_small(spec, {"train": pictures(9), "test": pictures(9)})

    def refused(match: str, **changes) -> None:
        with pytest.raises(SpecError, match=match):
            find_torchscript(spec.evaluation.extractor.model_copy(update=changes), prepared)

    refused("there is no such file; put the network's weights there", path="/nowhere/inception.pt")
    loaded: list[object] = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **more: loaded.append(args))
    path = Path(network["path"])
    path.write_bytes(path.read_bytes() + b"\0")
    refused(f"evaluation.extractor.sha256 is {network['sha256']}: these are other weights, which are not loaded")
    assert loaded == [] and prepared.store.list_names("extractors") == []
    monkeypatch.undo()
    path.write_bytes(b"not a network")
    refused("not a TorchScript file", sha256=hashlib.sha256(b"not a network").hexdigest())


def test_a_network_that_takes_or_gives_something_else_is_refused(network, spec_of, prepare_small):
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum() if x.shape[1] == 3 else x.view(7)

    path = Path(network["path"])
    torch.jit.script(Sum()).save(str(path))
    network["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for channels, match in ((3, r"gives \[\] for 9 examples"), (1, "does not take floats \\[9, 1, 4, 4\\]")):
        spec = spec_of(PICTURES, VAE, MLP, extractor=network | {"input": network["input"] | {"channels": channels}})
        prepared = prepare_small(spec, {"train": pictures(9), "test": pictures(9)})
        extractor = find_torchscript(spec.evaluation.extractor, prepared)
        with pytest.raises(SpecError, match=match):
            extractor.features(prepared.layout.to_model(prepared.load_split("test").x))


def test_sound_without_a_rate_is_refused(network, spec_of, prepare_small):
    network["input"]["sample_rate_hz"] = None
    spec = spec_of(SOUNDS, VAE, MLP, extractor=network)
    prepared = prepare_small(spec, {"train": tones(9), "test": tones(9)})
    with pytest.raises(SpecError, match="sample_rate_hz"):
        find_torchscript(spec.evaluation.extractor, prepared)
