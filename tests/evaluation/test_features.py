"""The classifier whose features measure samples: learns, repeats, is kept and is found again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.data.layout import Layout
from pipeline.errors import PreparedDataError
from pipeline.evaluation.extractors.autoencoder import Autoencoder, AutoencoderConfig, train_autoencoder
from pipeline.evaluation.extractors.classifier import Classifier, ClassifierConfig
from pipeline.evaluation.extractors.encoder import mel_filters
from pipeline.evaluation.features import can_classify, can_extract, find_or_train_extractor
from tests.evaluation.conftest import MLP, PICTURES, SOUNDS, pictures, tones

VAE = {"kind": "vae", "latent_size": 4}
SHORT = ClassifierConfig(steps=40, batch_size=32)


@pytest.fixture(params=["pictures", "sounds"])
def prepared(request, spec_of, prepare_small):
    make, codec = (pictures, PICTURES) if request.param == "pictures" else (tones, SOUNDS)
    return prepare_small(spec_of(codec, VAE, MLP), {"train": make(200), "test": make(60, seed=1)})


def test_classifier_learns_the_labels(prepared):
    extractor = find_or_train_extractor(prepared, classifier=SHORT)
    assert extractor is not None
    assert extractor.accuracy is not None
    assert extractor.accuracy > 0.95


def test_second_call_finds_the_same_extractor(prepared):
    first = find_or_train_extractor(prepared, classifier=SHORT)
    calls: list[str] = []
    second = find_or_train_extractor(prepared, classifier=SHORT, progress=lambda stage, *_: calls.append(stage))
    assert (second.name, second.sha256, second.accuracy) == (first.name, first.sha256, first.accuracy)
    assert calls == []
    x = prepared.layout.to_model(prepared.load_split("test").x)
    features = second.features(x)
    assert features.shape == (60, 64)
    assert features.dtype == torch.float64
    assert torch.equal(features, first.features(x))


def test_training_repeats_bit_for_bit(prepared):
    first = find_or_train_extractor(prepared, classifier=SHORT)
    prepared.store.delete_dir("extractors")
    assert find_or_train_extractor(prepared, classifier=SHORT).sha256 == first.sha256


def test_another_configuration_is_another_extractor(prepared):
    first = find_or_train_extractor(prepared, classifier=SHORT)
    second = find_or_train_extractor(prepared, classifier=ClassifierConfig(steps=41, batch_size=32))
    assert first.name != second.name
    assert len(prepared.store.list_names("extractors")) == 4


def test_a_changed_extractor_is_refused(prepared):
    extractor = find_or_train_extractor(prepared, classifier=SHORT)
    path = Path(prepared.store.root, "extractors", f"{extractor.name}.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(PreparedDataError, match="sha256"):
        find_or_train_extractor(prepared, classifier=SHORT)


@pytest.mark.parametrize("kind", ["pictures", "sounds"])
def test_without_labels_an_autoencoder_is_trained_kept_and_found_again(kind, spec_of, prepare_small):
    make, codec = (pictures, PICTURES) if kind == "pictures" else (tones, SOUNDS)
    rows = [(raw, None) for raw, _ in make(200)]
    prepared = prepare_small(spec_of(codec, VAE, MLP), {"train": rows, "test": rows[:60]})
    short = AutoencoderConfig(steps=60, batch_size=32)
    first = find_or_train_extractor(prepared, autoencoder=short)
    calls: list[str] = []
    second = find_or_train_extractor(prepared, autoencoder=short, progress=lambda stage, *_: calls.append(stage))
    assert calls == [] and second.accuracy is None
    assert (second.name, second.sha256) == (first.name, first.sha256) and first.name.startswith("autoencoder-")
    x = prepared.layout.to_model(prepared.load_split("test").x)
    assert second.features(x).shape == (60, 64) and second.features(x).dtype == torch.float64
    assert torch.equal(second.features(x), first.features(x))


def test_the_code_tells_examples_apart_better_than_no_training_does(spec_of, prepare_small):
    """Told from its code, an example is nearer to itself than the mean is: less than the variance is left."""
    rows = [(raw, None) for raw, _ in tones(200)]
    prepared = prepare_small(spec_of(SOUNDS, VAE, MLP), {"train": rows, "test": rows})
    layout, arrays = prepared.layout, prepared.load_split("train")
    trained = train_autoencoder(layout, arrays, AutoencoderConfig(steps=120, batch_size=32))
    with torch.no_grad():
        assert float(trained(layout.to_model(arrays.x)).mean()) < 0.5


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 300, 200), (1, 64), (1, 16384)])
def test_any_size_of_signal_is_told_again(shape):
    layout = Layout("image", "signal", shape, "uint8", "bernoulli", sample_rate_hz=8000)
    autoencoder = Autoencoder(layout, AutoencoderConfig())
    assert autoencoder(torch.rand(2, *shape)).shape == (2,)


def test_signals_have_features_and_with_labels_classes():
    signal = {"modality": "image", "view": "signal", "stored_dtype": "uint8", "likelihood": "bernoulli"}
    assert can_classify(Layout(shape=(1, 8, 8), labels=("a", "b"), **signal))
    assert not can_classify(Layout(shape=(1, 8, 8), labels=("a",), **signal))
    assert can_extract(Layout(shape=(1, 8, 8), labels=("a",), **signal))
    assert not can_extract(Layout("text", "tokens", (8,), "uint8", "categorical", labels=("a", "b")))


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 300, 200), (1, 64), (1, 16384)])
def test_any_size_of_signal_is_taken(shape):
    layout = Layout("image", "signal", shape, "uint8", "bernoulli", sample_rate_hz=8000, labels=("a", "b"))
    assert Classifier(layout, ClassifierConfig()).embed(torch.rand(2, *shape)).shape == (2, 64)


def test_mel_filters_cover_the_band_and_peak_in_order():
    filters = mel_filters(8000, 256, 40)
    peaks = filters.argmax(0)
    assert filters.shape == (129, 40)
    assert bool((filters >= 0).all())
    assert bool((peaks[1:] >= peaks[:-1]).all())
