"""The whole evaluation of a bundle in this process, and as Ray tasks."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.data.prepared import Prepared
from pipeline.errors import CorpusError
from pipeline.evaluation import evaluate as room
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.sample_novelty import DEFINITIONS_OF_SAMPLE_NOVELTY
from tests.evaluation.conftest import MLP, PICTURES, RECURRENT, SOUNDS, WINDOWS, pictures, tones

VAE = {"kind": "vae", "latent_size": 4}
GAN = {"kind": "gan", "latent_size": 4}
RNN = {"kind": "rnn"}
OF_NEIGHBOURS = ("precision", "recall", "density", "coverage", "vendi_score", "inception_score")
SAMPLES = (
    {"test/frechet", "test/frechet_floor", "test/kid", "test/kid_floor"}
    | {f"test/{name}{of_real}" for name in OF_NEIGHBOURS for of_real in ("", "_ceiling")}
    | {f"test/{name}" for name in DEFINITIONS_OF_SAMPLE_NOVELTY}
)
LIKELIHOOD = {
    f"test/{name}"
    for name in ("nll_nats", "elbo_nats", "kl_nats", "information_nats", "reconstruction_mse", "active_units")
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch, short_extractors):
    """Also where another test of the session has started Ray."""
    monkeypatch.setattr(room.ray, "is_initialized", lambda: False)


@pytest.mark.parametrize(
    ("codec", "family", "backbone", "keys"),
    [
        (PICTURES, VAE, MLP, LIKELIHOOD | SAMPLES),
        (SOUNDS, GAN, MLP, {"test/wasserstein"} | SAMPLES),
        (
            WINDOWS,
            RNN,
            RECURRENT,
            {"test/nats_per_token", "test/perplexity", "test/bits_per_char", "test/bits_per_byte"},
        ),
    ],
)
def test_each_family_gets_its_scores(spec_of, prepare_small, bundle_of, codec, family, backbone, keys):
    spec = spec_of(codec, family, backbone)
    rows = {"image": pictures(60), "waveform": tones(60)}.get(codec["kind"], [("to be or not to be " * 60, None)])
    prepared = prepare_small(spec, {"train": rows, "test": rows})
    told: list[tuple[str, int, int | None]] = []
    scores = evaluate(
        spec, prepared, bundle_of(spec, prepared), lambda stage, done, total, _: told.append((stage, done, total))
    )
    assert set(scores) == keys
    assert told[-1][0] == "evaluate"
    assert told[-1][1] == told[-1][2]
    assert evaluate(spec, prepared, bundle_of(spec, prepared)) == scores


def test_an_empty_split_is_the_users_mistake(spec_of, prepare_small, bundle_of):
    spec = spec_of(PICTURES, VAE, MLP)
    prepared = prepare_small(spec, {"train": pictures(9), "test": pictures(9)})
    splits = {**prepared.manifest.splits, "test": {**prepared.manifest.splits["test"], "rows": 0}}
    emptied = Prepared(prepared.store, dataclasses.replace(prepared.manifest, splits=splits))
    with pytest.raises(CorpusError, match=r"'test' is empty.*data.split.test"):
        evaluate(spec, emptied, bundle_of(spec, prepared))
