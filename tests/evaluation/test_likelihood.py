"""Held-out sums against closed forms and hand-made passes: every target once, whatever the number of workers."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.code_version import code_version
from pipeline.data.layout import Layout
from pipeline.data.prepared import SplitArrays
from pipeline.evaluation.evaluate import load_subject
from pipeline.evaluation.likelihood import (
    LANES,
    WINDOWS_PER_LANE,
    Likelihood,
    Stream,
    evaluate_split,
    num_pieces,
    split_pieces,
)
from pipeline.evaluation.metric import add
from pipeline.models import build_model
from tests.evaluation.conftest import DOCUMENTS, KEY, MLP, PICTURES, RECURRENT, WINDOWS, pictures

RNN = {"kind": "rnn"}
VAE = {"kind": "vae", "latent_size": 4, "binarise": "dynamic"}
GAN = {"kind": "gan", "latent_size": 4}
TEXT = "the quick brown fox jumps over the lazy dog. " * 60


def _close(left, right, tolerance=1e-9):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize(
    ("codec", "family", "backbone"),
    [(PICTURES, VAE, MLP), (PICTURES, GAN, MLP), (WINDOWS, RNN, RECURRENT), (DOCUMENTS, RNN, RECURRENT)],
)
def test_many_workers_sum_to_one(spec_of, prepare_small, codec, family, backbone, world_size):
    spec = spec_of(codec, family, backbone)
    rows = pictures(45) if codec is PICTURES else [(TEXT, None)] if codec is WINDOWS else [("A few words", None)] * 45
    prepared = prepare_small(spec, {"train": rows, "test": rows})
    model, arrays, layout = build_model(spec, prepared.layout), prepared.load_split("test"), prepared.layout
    whole = evaluate_split(model, arrays, layout, spec, seed=3)
    parts: dict[str, torch.Tensor] = {}
    for rank in range(world_size):
        add(parts, evaluate_split(model, arrays, layout, spec, seed=3, rank=rank, world_size=world_size))
    _close(whole, parts)


@pytest.mark.parametrize("windows", [1, 2, 3, 17, 40, LANES * WINDOWS_PER_LANE * 3 + 5])
@pytest.mark.parametrize("tail", [0, 1, 7])
def test_every_target_is_counted_once(windows, tail):
    """Over all groups and lanes the targets are tokens 1 to the last, each once; burn-in reads only what precedes."""
    length = 8
    layout = Layout("text", "tokens", (length,), "uint8", "categorical", vocabulary=9, continuous=True)
    arrays = SplitArrays(
        x=torch.zeros(windows, length, dtype=torch.uint8),
        label=torch.full((windows,), -1),
        ids=[],
        tail=torch.zeros(tail, dtype=torch.int64),
    )
    stream = Stream.of(arrays, layout, windows)
    seen = []
    for group in range(stream.num_groups):
        lanes = [stream.lane(lane) for lane in stream.lanes(group)]
        for step, together in stream.steps(group):
            for place, window in together:
                assert window == lanes[place][0] + step >= 0
                if step >= 0:
                    seen += range(window * length + 1, min((window + 1) * length, windows * length + tail - 1) + 1)
    assert sorted(seen) == list(range(1, windows * length + tail))


def test_lanes_agree_with_one_pass_over_the_text(spec_of, prepare_small):
    """A model without memory scores each token alike from anywhere, so lanes must give the one-pass sum exactly."""
    spec = spec_of(WINDOWS, RNN, RECURRENT)
    prepared = prepare_small(spec, {"train": [(TEXT, None)], "test": [(TEXT, None)]})
    model, arrays = build_model(spec, prepared.layout), prepared.load_split("test")
    for name, parameter in model.named_parameters():
        if "weight_hh" in name:
            torch.nn.init.zeros_(parameter)
        if "bias" in name:
            parameter.data[12:24] = -30.0  # the forget gate is shut: nothing is carried in the cell
    stream = torch.cat([arrays.x.flatten().long(), arrays.tail])
    expected = model.token_nats(stream[None]).nansum()
    sums = evaluate_split(model, arrays, prepared.layout, spec, seed=0)
    assert int(sums["tokens"]) == len(TEXT) - 1
    assert float(sums["nats"]) == pytest.approx(float(expected), rel=1e-6)


def test_carried_state_brings_lanes_near_one_long_pass(spec_of, prepare_small):
    """With memory, only what lies before a lane's burn-in is forgotten."""
    spec = spec_of(WINDOWS, RNN, RECURRENT)
    prepared = prepare_small(spec, {"train": [(TEXT, None)], "test": [(TEXT, None)]})
    model, arrays = build_model(spec, prepared.layout), prepared.load_split("test")
    stream = torch.cat([arrays.x.flatten().long(), arrays.tail])
    expected = model.token_nats(stream[None]).nanmean()
    sums = evaluate_split(model, arrays, prepared.layout, spec, seed=0)
    assert float(sums["nats"] / sums["tokens"]) == pytest.approx(float(expected), rel=1e-5)


def test_uniform_model_needs_log_v_nats_and_bits_follow(spec_of, prepare_small, bundle_of):
    spec = spec_of(WINDOWS, RNN, RECURRENT)
    text = "zażółć gęślą jaźń " * 40  # some characters of two bytes
    prepared = prepare_small(spec, {"train": [(text, None)], "test": [(text, None)]})
    subject = load_subject(spec, prepared, bundle_of(spec, prepared), torch.device("cpu"))
    for parameter in subject.model.head.parameters():
        torch.nn.init.zeros_(parameter)
    metric = Likelihood()
    scores = metric.finish(metric.measure(subject), subject)
    vocabulary = prepared.layout.vocabulary
    assert scores["nats_per_token"].value == pytest.approx(math.log(vocabulary), rel=1e-6)
    assert scores["perplexity"].value == pytest.approx(vocabulary, rel=1e-5)
    assert scores["bits_per_char"].value == pytest.approx(math.log2(vocabulary), rel=1e-6)
    bytes_a_character = len(text.encode()) / len(text)
    assert scores["bits_per_byte"].value == pytest.approx(math.log2(vocabulary) / bytes_a_character, rel=1e-6)


def test_bits_of_documents_count_the_text_that_was_scored(spec_of, prepare_small, bundle_of):
    """A document longer than the codec keeps is scored, and its characters counted, up to the cut."""
    spec = spec_of(DOCUMENTS, RNN, RECURRENT)
    rows = [("short", None), ("x" * 100, None)] * 10
    prepared = prepare_small(spec, {"train": rows, "test": rows})
    subject = load_subject(spec, prepared, bundle_of(spec, prepared), torch.device("cpu"))
    for parameter in subject.model.head.parameters():
        torch.nn.init.zeros_(parameter)
    metric = Likelihood()
    sums = metric.measure(subject)
    scores = metric.finish(sums, subject)
    decoded = [subject.codec.decode(row.numpy()) for row in subject.arrays.x.long()]
    tokens = sum(float(value) for name, value in sums.items() if name.endswith("|tokens"))
    expected = tokens * math.log2(prepared.layout.vocabulary) / sum(map(len, decoded))
    assert scores["bits_per_char"].value == pytest.approx(expected, rel=1e-6)
    assert sum(map(len, decoded)) < 10 * 105


def test_max_examples_cuts_the_split_and_its_characters(spec_of, prepare_small, bundle_of):
    spec = spec_of(WINDOWS, RNN, RECURRENT, max_examples=5)
    prepared = prepare_small(spec, {"train": [(TEXT, None)], "test": [(TEXT, None)]})
    subject = load_subject(spec, prepared, bundle_of(spec, prepared), torch.device("cpu"))
    metric = Likelihood()
    scores = metric.finish(metric.measure(subject), subject)
    assert scores["bits_per_char"].value == pytest.approx(scores["nats_per_token"].value / math.log(2), rel=1e-9)
    assert scores["nats_per_token"].protocol == {
        "split": "test",
        "examples": 5,
        "prepared": KEY,
        "code": code_version(),
        "seed": 0,
        "characters": 39,
    }


def test_pieces_are_as_many_as_announced(spec_of, prepare_small):
    for codec, family, backbone in ((PICTURES, VAE, MLP), (WINDOWS, RNN, RECURRENT)):
        spec = spec_of(codec, family, backbone)
        rows = pictures(45) if codec is PICTURES else [(TEXT, None)]
        prepared = prepare_small(spec, {"train": rows, "test": rows})
        model, arrays = build_model(spec, prepared.layout), prepared.load_split("test")
        pieces = list(split_pieces(model, arrays, prepared.layout, spec, seed=0))
        assert len(pieces) == num_pieces(arrays, prepared.layout, spec)


def test_vae_scores_have_intervals_and_protocols(spec_of, prepare_small, bundle_of):
    spec = spec_of(PICTURES, VAE, MLP)
    rows = pictures(60)
    prepared = prepare_small(spec, {"train": rows, "test": rows})
    subject = load_subject(spec, prepared, bundle_of(spec, prepared), torch.device("cpu"))
    metric = Likelihood()
    scores = metric.finish(metric.measure(subject), subject)
    nll, elbo = scores["nll_nats"], scores["elbo_nats"]
    assert nll.value <= -elbo.value
    assert nll.interval is not None
    assert nll.interval[0] < nll.value < nll.interval[1]
    assert nll.protocol["draws_per_example"] == 3
    assert (nll.better, elbo.better) == ("lower", "higher")
    assert scores["active_units"].interval is None


def test_the_model_is_left_in_the_mode_it_was_in(spec_of, prepare_small):
    spec = spec_of(PICTURES, VAE, MLP)
    prepared = prepare_small(spec, {"train": pictures(9), "test": pictures(9)})
    model = build_model(spec, prepared.layout).train()
    evaluate_split(model, prepared.load_split("test"), prepared.layout, spec, seed=0)
    assert model.training
