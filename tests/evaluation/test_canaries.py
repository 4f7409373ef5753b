"""Exposure of canaries: closed forms, and models that did and did not memorise one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.data.codec import make_codec
from pipeline.errors import SpecError
from pipeline.evaluation.canaries import (
    CanaryFormat,
    exposure_by_extrapolation,
    exposure_by_rank,
    exposure_by_sampling,
    measure_exposure,
    nats_of,
    plant,
)
from pipeline.models import build_model
from pipeline.models.base import Batch, Noise, StepContext, make_generator
from tests.evaluation.conftest import DOCUMENTS, RECURRENT, WINDOWS
from tests.evaluation.texts import sentences

FORMAT = CanaryFormat("code {}.", length=3)
SECRET = "271"


def test_every_number_is_a_secret_and_every_draw_is_one():
    every = [FORMAT.secret(number) for number in range(FORMAT.num_secrets)]
    assert len(set(every)) == FORMAT.num_secrets == 1000
    assert every[271] == SECRET
    drawn = FORMAT.random_secrets(3000, make_generator(0, "test"))
    assert set(drawn) <= set(every)
    assert len(set(drawn)) == pytest.approx(1000 * (1 - math.exp(-3)), abs=40)


@pytest.mark.parametrize("wrong", [{"template": "no place"}, {"template": "{} {}"}, {"length": 0}, {"alphabet": "aa"}])
def test_a_format_without_a_secret_is_the_users_mistake(wrong):
    with pytest.raises(SpecError, match="once"):
        CanaryFormat(**wrong)


def test_planting_adds_as_many_and_takes_nothing_away():
    records = sentences(30, 0)
    planted = plant(records, "canary", 4, seed=1)
    assert planted.count("canary") == 4
    assert [text for text in planted if text != "canary"] == records
    assert planted != plant(records, "canary", 4, seed=2)
    (stream,) = plant(["one\ntwo\nthree\n"], "canary", 2, seed=1)
    assert sorted(stream.splitlines()) == ["canary", "canary", "one", "three", "two"]


def test_exposure_is_log_of_all_less_log_of_rank():
    others = np.arange(1.0, 1024.0)
    assert exposure_by_rank(0.5, others) == 10
    assert exposure_by_rank(3.5, others) == 8
    assert exposure_by_rank(2000.0, others) == 0


def test_sampled_exposure_is_the_share_that_costs_no_more_and_its_interval_holds_the_exact_one():
    generator = np.random.default_rng(0)
    others = generator.normal(30, 4, 100_000)
    exact = exposure_by_rank(24.0, others)
    covered = 0
    for _ in range(200):
        value, interval = exposure_by_sampling(24.0, generator.choice(others, 2000))
        assert interval[0] <= value <= interval[1]
        covered += interval[0] <= exact <= interval[1]
    assert covered >= 186
    value, interval = exposure_by_sampling(-100.0, others[:999])
    assert value == pytest.approx(math.log2(1000))
    assert interval[1] == math.inf


def test_extrapolation_goes_on_where_sampling_ends():
    others = np.random.default_rng(0).normal(30, 4, 5000)
    value, fit = exposure_by_extrapolation(30 - 4 * 5, others)
    assert value == pytest.approx(-math.log2(2.867e-7), rel=0.1)  # the normal distribution at -5
    assert fit > 0.05
    _, misfit = exposure_by_extrapolation(0.0, np.concatenate([others, others + 30]))
    assert misfit < 0.05


def overfitted(spec_of, texts, packing, steps):
    """A small recurrent model trained on nothing but `texts`."""
    codec_values = {**DOCUMENTS, "length": 40} if packing == "documents" else WINDOWS
    spec = spec_of(codec_values, {"kind": "rnn"}, {**RECURRENT, "hidden_size": 32})
    codec = make_codec(spec.data.codec)
    codec.fit(texts)
    torch.manual_seed(0)
    model = build_model(spec, codec.layout())
    encoded = [torch.from_numpy(codec.encode(text).astype(np.int64)) for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    for step in range(steps):
        order = torch.randperm(len(encoded), generator=make_generator(0, "order", step)).tolist()
        if packing == "documents":
            x = torch.stack(encoded)
        else:  # a stream in another order each time, so that no place in it is learned
            x = torch.cat([torch.tensor([codec.layout().end_token]), *(encoded[row] for row in order)]).unsqueeze(0)
        noise = Noise(make_generator(0, "test", step))
        batch = Batch(x, torch.full((len(x),), -1), torch.arange(len(x)))
        optimizer.zero_grad()
        model(batch, "model", StepContext(noise, len(x))).loss.backward()
        optimizer.step()
    return model, codec, codec.layout()


@pytest.mark.parametrize(("packing", "steps"), [("documents", 60), ("windows", 160)])
def test_a_memorised_canary_is_exposed_and_one_that_was_not_planted_is_not(spec_of, packing, steps):
    short = CanaryFormat("code {}.", length=2)
    texts = [f"code {number}." for number in ("80", "53", "11", "96")] + sentences(8, 0)
    with_it = plant(texts, short.text("27"), 8, seed=0)
    memorised = measure_exposure(*overfitted(spec_of, with_it, packing, steps), short, "27", samples=100)
    assert memorised.by_rank == memorised.most_bits == pytest.approx(math.log2(100))
    assert memorised.by_sampling == pytest.approx(memorised.by_rank)
    honest = measure_exposure(*overfitted(spec_of, texts, packing, steps), short, "27", samples=100)
    assert honest.by_rank < 3
    sampled = measure_exposure(*overfitted(spec_of, texts, packing, 0), short, "27", samples=50)
    assert sampled.by_rank is None
    assert sampled.interval[0] <= sampled.by_sampling <= sampled.interval[1]


def test_the_cost_of_a_document_is_its_negative_log_likelihood(spec_of):
    spec = spec_of(DOCUMENTS, {"kind": "rnn"}, RECURRENT)
    codec = make_codec(spec.data.codec)
    model = build_model(spec, codec.layout()).eval()
    x = torch.from_numpy(codec.encode("code 271.").astype(np.int64)).unsqueeze(0)
    assert nats_of(model, codec, codec.layout(), ["code 271."])[0] == pytest.approx(
        float(model.token_nats(x).nansum()), rel=1e-6
    )
