"""Forgetting: the old corpus scored before and after, read by each model through its own codec."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.codec import Codec, make_codec
from pipeline.data.prepared import Prepared
from pipeline.data.text import TextCodec
from pipeline.evaluation.definitions import DEFINITIONS
from pipeline.evaluation.forgetting import documents, encoded, forgetting
from pipeline.generation.sampling import save_bundle
from pipeline.models import build_model
from pipeline.models.surgery import Donor, inherit
from pipeline.spec import RunSpec
from tests.evaluation.conftest import MLP, PICTURES, RECURRENT, WINDOWS, pictures

RNN = {"kind": "rnn"}
VAE = {"kind": "vae", "latent_size": 3}
LETTERS = list("abcd efgh")


@pytest.fixture
def bundled(tmp_path: Path) -> Callable[..., Path]:
    """A bundle of a spec, a codec and weights, by default as they are initialised."""

    def make(name: str, spec: RunSpec, prepared: Prepared, codec: Codec, weights: Any = None) -> Path:
        layout = codec.layout()
        manifest = replace(prepared.manifest, codec=codec.state(), layout=layout.as_dict())
        weights = weights or build_model(spec, layout).state_dict()
        return save_bundle(tmp_path / name, spec, manifest.as_dict(), weights)

    return make


def prose(count: int) -> str:
    return "".join(np.random.default_rng(0).choice(LETTERS, count))


@pytest.mark.parametrize("keys", [{}, {"special_tokens": ["<|user|>"]}, {"length": 16}])
def test_a_model_that_took_over_all_tokens_and_never_trained_forgot_only_what_new_ones_take(
    keys: dict[str, Any], spec_of: Callable[..., RunSpec], prepare_small: Callable, bundled: Callable
) -> None:
    spec = spec_of(WINDOWS, RNN, RECURRENT)
    old = prepare_small(spec, {"train": [(prose(900), None)], "test": [(prose(700), None)]})
    new = spec_of({**WINDOWS, **keys}, RNN, RECURRENT)
    codec = make_codec(new.data.codec, single_document=True)
    codec.fit([prose(900) + "XYZ"])
    donor = build_model(spec, old.layout)
    weights, _ = inherit(
        new, codec.layout(), codec.meanings(), Donor(old.layout, old.codec.meanings(), donor.state_dict())
    )
    told = forgetting(
        spec,
        old,
        bundled("donor", spec, old, old.codec, donor.state_dict()),
        bundled("heir", new, old, codec, weights),
    )
    before, after, lost = (told[f"forgetting/bits_per_char_{when}"] for when in ("before", "after", "forgotten"))
    assert lost.value == pytest.approx(after.value - before.value, abs=1e-12)
    num_new = codec.layout().vocabulary - old.layout.vocabulary
    most = -math.log2(1 - num_new / codec.layout().vocabulary)
    assert -1e-3 < lost.value < most + 1e-3
    assert all(key.rpartition("/")[2] in DEFINITIONS for key in told)


def test_characters_that_the_heir_never_had_cost_what_telling_them_apart_does(
    spec_of: Callable[..., RunSpec], prepare_small: Callable, bundled: Callable
) -> None:
    spec = spec_of(WINDOWS, RNN, RECURRENT)
    old = prepare_small(spec, {"train": [("abcd" * 200, None)], "test": [("abcd" * 100, None)]})
    codec = make_codec(spec.data.codec, single_document=True)
    codec.fit(["ab"])

    def zeros(layout: Any) -> dict[str, torch.Tensor]:
        return {name: torch.zeros_like(value) for name, value in build_model(spec, layout).state_dict().items()}

    told = forgetting(
        spec,
        old,
        bundled("donor", spec, old, old.codec, zeros(old.layout)),
        bundled("heir", spec, old, codec, zeros(codec.layout())),
    )
    assert told["forgetting/bits_per_char_before"].value == pytest.approx(math.log2(5), rel=1e-2)
    # a, b and unknown, of which the last, half of all characters, stands for c, d and what neither knows.
    assert told["forgetting/bits_per_char_after"].value == pytest.approx(1.5 * math.log2(3), rel=1e-2)


def test_pictures_are_compared_by_the_nats_of_an_example(
    spec_of: Callable[..., RunSpec], prepare_small: Callable, bundled: Callable
) -> None:
    spec = spec_of(PICTURES, VAE, MLP)
    old = prepare_small(spec, {"train": pictures(40), "test": pictures(20, seed=1)})
    other = {name: value * 3 for name, value in build_model(spec, old.layout).state_dict().items()}
    donor, heir = bundled("donor", spec, old, old.codec), bundled("heir", spec, old, old.codec, other)
    told = forgetting(spec, old, donor, heir)
    assert told["forgetting/nll_nats_forgotten"].value > 0
    assert forgetting(spec, old, donor, donor)["forgetting/nll_nats_forgotten"].value == 0


def test_what_does_not_compare_is_said_in_words(
    spec_of: Callable[..., RunSpec], prepare_small: Callable, bundled: Callable
) -> None:
    spec = spec_of(PICTURES, VAE, MLP)
    old = prepare_small(spec, {"train": pictures(40), "test": pictures(20, seed=1)})
    donor = bundled("donor", spec, old, old.codec)
    larger = spec_of({**PICTURES, "size": [10, 10]}, VAE, MLP)
    gan = spec_of(PICTURES, {"kind": "gan", "latent_size": 3}, MLP)
    for heir, words in ((larger, "another form"), (gan, "no score in common")):
        told = forgetting(spec, old, donor, bundled(words, heir, old, make_codec(heir.data.codec)))
        assert not told and words in told.refused["forgetting"]


@pytest.mark.parametrize("packing", ["windows", "documents"])
def test_texts_come_through_another_packing_whole(packing: str, spec_of: Callable[..., RunSpec]) -> None:
    texts = ["abcd" * 9, "bad", "cab dab"]
    held = make_codec(spec_of({**WINDOWS, "packing": "documents", "length": 40}, RNN, RECURRENT).data.codec)
    own = make_codec(spec_of({"kind": "bytes", "length": 12, "packing": packing}, RNN, RECURRENT).data.codec)
    assert isinstance(held, TextCodec) and isinstance(own, TextCodec)
    held.fit(texts)
    assert list(documents(encoded(texts, held, held.layout()), held, held.layout())) == texts
    read = documents(encoded(texts, own, own.layout()), own, own.layout())
    assert "".join(read) == "".join(texts)
