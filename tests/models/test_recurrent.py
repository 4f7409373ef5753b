"""The recurrent family against truth: sums over every example, windows that equal one pass, inputs without a future."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.data.batches import ShuffledBatches
from pipeline.data.layout import Layout
from pipeline.data.order import Order
from pipeline.data.prepared import SplitArrays
from pipeline.data.windows import WindowedBatches
from pipeline.errors import SpecError
from pipeline.models.backbones import Recurrent
from pipeline.models.base import Batch, Noise, SamplingOptions, StepContext, make_generator
from pipeline.models.conditioning import NO_CONDITION
from pipeline.models.neighbours import neighbour_places
from pipeline.models.rnn import RecurrentLanguageModel
from pipeline.spec import ConditionSpec, RecurrentBackboneSpec, RnnSpec, make_spec
from tests.conftest import cell_spec


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def picture(height: int, width: int, channels: int = 1, levels: int = 2) -> Layout:
    raster = (height, width, channels)
    shape = (height * width * channels,)
    return Layout("image", "tokens", shape, "uint8", "categorical", vocabulary=levels, raster=raster)


def sound(samples: int, levels: int) -> Layout:
    ends = {"end_token": levels, "pad_token": levels + 1}
    return Layout("audio", "tokens", (samples,), "uint8", "categorical", vocabulary=levels + 2, **ends)


def model_of(
    layout: Layout,
    cell: str = "gru",
    backbone: dict[str, Any] | None = None,
    condition: ConditionSpec = NO_CONDITION,
    **family: Any,
) -> Any:
    """A model whose weights are large enough for every input to matter, in double precision."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "embedding_size": 6} | (backbone or {})
    spec = RecurrentBackboneSpec(kind="recurrent", cell=cell, **sizes)  # type: ignore[arg-type]
    model = RecurrentLanguageModel(layout, RnnSpec(kind="rnn", **family), spec, condition).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        if layout.pad_token is not None:
            # Padding is never a target: what a model gives it would be lost from the sum over every example.
            model.head.weight[layout.pad_token] = 0
            model.head.bias[layout.pad_token] = -1e9
    return model


def batch_of(x: torch.Tensor, start: torch.Tensor | None = None) -> Batch:
    return Batch(x, torch.full((len(x),), -1), torch.arange(len(x)), start=start)


FORMS: dict[str, Callable[[], Any]] = {
    "text": lambda: model_of(Layout("text", "tokens", (4,), "uint8", "categorical", 3), backbone={"layers": 2}),
    "text-tied": lambda: model_of(Layout("text", "tokens", (4,), "uint8", "categorical", 3), tied_embeddings=True),
    "picture": lambda: model_of(picture(2, 3, levels=3), history=1, rows_above=1, columns_above=3),
    "picture-colours": lambda: model_of(picture(2, 1, 3), "lstm", rows_above=1, columns_above=3, readout=[7]),
    "picture-rows": lambda: model_of(picture(2, 3), frame=3, history=2, rows_above=1, readout=[8, 8]),
    "picture-bits": lambda: model_of(picture(2, 3, levels=2), frame=3, history=1, readout=[8], binarise="dynamic"),
    "picture-uneven-frames": lambda: model_of(picture(2, 3), frame=4, history=2, readout=[5]),
    "sound": lambda: model_of(sound(4, 3), history=2, readout=[6], backbone={"norm": "layer"}),
    "sound-windows": lambda: model_of(sound(5, 3), history=3, readout=[6], window=2, frame=2),
}  # fmt: skip


def every_example(model: Any) -> torch.Tensor:
    layout = model.layout
    every = torch.tensor(list(itertools.product(range(layout.vocabulary), repeat=layout.length)))
    if layout.end_token is None:
        return every
    # Of sounds those that end once, with padding to the end, or not at all.
    ended = (every == layout.end_token).int().cumsum(1) - (every == layout.end_token).int()
    return every[((every == layout.pad_token) == (ended > 0)).all(1)]


@pytest.mark.parametrize("form", FORMS)
def test_likelihood_sums_to_one_over_every_example(form: str) -> None:
    model = FORMS[form]()
    nats = model.token_nats(every_example(model)).nan_to_num(0).sum(1)
    assert float(torch.exp(-nats).sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_no_token_sees_a_later_one(form: str) -> None:
    model = FORMS[form]()
    examples = torch.randint(2, (40, model.layout.length), generator=make_generator(0, "examples"))
    before = model.token_nats(examples)
    for place in range(model.layout.length):
        changed = examples.clone()
        changed[:, place] = 1 - changed[:, place]
        after = model.token_nats(changed)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=0)
        assert not after[:, place].equal(before[:, place])
        if place + 1 < model.layout.length:
            assert not after[:, place + 1].equal(before[:, place + 1])


@pytest.mark.parametrize("form", FORMS)
def test_samples_come_as_often_as_the_likelihood_says(form: str) -> None:
    model = FORMS[form]()
    drawn = model.sample(20_000, make_generator(0, "sample"), SamplingOptions())
    if model.layout.pad_token is not None:
        drawn = drawn[(drawn != model.layout.pad_token).all(1)]
        share = len(drawn) / 20_000
    else:
        share = 1.0
    found, counts = drawn.unique(dim=0, return_counts=True)
    likeliest = counts.topk(3).indices
    expected = torch.exp(-model.token_nats(found[likeliest]).nan_to_num(0).sum(1))
    torch.testing.assert_close(counts[likeliest].double() / len(drawn) * share, expected, rtol=0, atol=0.012)


def test_pixel_sees_the_row_above_the_left_and_its_own_earlier_channels() -> None:
    family = RnnSpec(kind="rnn", history=1, rows_above=1, columns_above=3)
    places = neighbour_places(picture(3, 4, 2), family)
    # Row 1, column 1, channel 1 is token 11; a row has 8.
    assert places[11].tolist() == [10, 8, 9, 0, 1, 2, 3, 4, 5]
    # Row 2, column 0, channel 0 is token 16, at the left edge.
    assert places[16].tolist() == [24, 24, 24, 24, 24, 8, 9, 10, 11]
    assert (places < torch.arange(24).unsqueeze(1)).logical_or(places == 24).all()


def test_sample_sees_those_before() -> None:
    assert neighbour_places(sound(4, 3), RnnSpec(kind="rnn", history=2)).tolist() == [[4, 4], [0, 4], [1, 0], [2, 1]]


@pytest.mark.parametrize("frame", [1, 2])
def test_windows_with_carried_state_equal_one_pass(frame: int) -> None:
    layout = sound(11, 4)
    lengths = torch.tensor([11, 3, 7, 5])
    x = torch.randint(4, (4, 11), generator=make_generator(0, "sounds"))
    place = torch.arange(11)
    x = torch.where(place < lengths[:, None], x, torch.where(place == lengths[:, None], 4, 5))
    options = {"history": 3, "readout": [6], "frame": frame}
    whole = model_of(layout, "lstm", **options)
    model = model_of(layout, "lstm", window=4, **options).train()
    model.load_state_dict(whole.state_dict())
    expected = whole.token_nats(x).nan_to_num(0)
    carry, total, noise = None, 0.0, Noise(make_generator(0, "n"))
    for start in (0, 4, 8):
        output = model(batch_of(x, torch.full((4,), start)), "model", StepContext(noise, 4, carry=carry))
        carry, total = output.carry, total + float(output.loss.detach()) * 16
    assert total == pytest.approx(float(expected.sum()), rel=1e-9)
    torch.testing.assert_close(model.eval().token_nats(x).nan_to_num(0), expected)


def test_lane_that_begins_an_example_forgets_the_one_before() -> None:
    model = model_of(sound(8, 4), window=4)
    x = torch.randint(4, (3, 8), generator=make_generator(0, "sounds"))
    start, noise = torch.tensor([0, 4, 0]), Noise(make_generator(0, "n"))
    full = (torch.ones(3, 1, 8),)
    other = (torch.tensor([5.0, 1.0, -3.0]).view(3, 1, 1).expand(3, 1, 8),)
    steps = [model(batch_of(x, start), "model", StepContext(noise, 3, carry=carry)) for carry in (full, other)]
    assert steps[0].loss.equal(steps[1].loss)
    assert not steps[0].loss.equal(model(batch_of(x, start), "model", StepContext(noise, 3)).loss)


def _shuffled(rank: int = 0, world_size: int = 1) -> ShuffledBatches:
    x = torch.arange(6).unsqueeze(1) * 10 + torch.arange(5)
    arrays = SplitArrays(x=x, label=torch.arange(6), ids=[], tail=torch.zeros(0, dtype=torch.int64))
    layout = Layout("audio", "tokens", (5,), "uint8", "categorical", vocabulary=64)
    return ShuffledBatches(arrays, layout, Order([6], 6, seed=0), 2, rank, world_size)


def test_lanes_read_every_window_of_every_example_in_order() -> None:
    batches = WindowedBatches(_shuffled(), length=5, window=2, batch_size=2)
    seen: list[set[tuple[int, int]]] = [set(), set()]
    for step in range(9):
        batch = batches.batch(step)
        assert batch.start is not None
        for lane, (row, start) in enumerate(zip(batch.index.tolist(), batch.start.tolist(), strict=True)):
            assert batch.x[lane, 0] == row * 10
            assert batch.label[lane] == row
            assert start == (step + lane) % 3 * 2
            seen[lane].add((row, start))
    # Lane 1 began a window ahead, and has one of its fourth example in place of the first of its first.
    assert len(seen[0] | seen[1]) == 18
    again = WindowedBatches(_shuffled(), length=5, window=2, batch_size=2).batch(8)
    assert again.x.equal(batch.x)


def test_windows_of_two_workers_interleave_to_those_of_one() -> None:
    one = WindowedBatches(_shuffled(), 5, 2, batch_size=2)
    two = [WindowedBatches(_shuffled(rank, 2), 5, 2, 2, rank, 2) for rank in (0, 1)]
    for step in range(7):
        whole, parts = one.batch(step), [batches.batch(step) for batches in two]
        for name in ("x", "start", "index"):
            assert torch.cat([getattr(part, name) for part in parts]).equal(getattr(whole, name))


def test_sample_is_of_the_label_that_it_was_asked_for() -> None:
    layout = replace(picture(2, 2), labels=("a", "b"), label_counts=(3, 1))
    model = model_of(layout, condition=ConditionSpec(on=("label",), size=4), history=1, rows_above=1, columns_above=1)
    every = every_example(model)
    shares = []
    for label in (0, 1):
        asked = Batch(every, torch.full((len(every),), label), torch.arange(len(every)))
        expected = torch.exp(-model.token_nats(every, asked).sum(1))
        assert float(expected.sum()) == pytest.approx(1)
        shares.append(expected)
        drawn = model.sample(10_000, make_generator(0, "s"), SamplingOptions(asked_label=label))
        found = (drawn @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16)
        torch.testing.assert_close(found / 10_000, expected, rtol=0, atol=0.015)
        sums, _ = model.evaluate(Batch(every, asked.label, asked.index), Noise(make_generator(0, "n")))
        assert float(sums["nats"]) == pytest.approx(-float(expected.log().sum()))
    assert (shares[0] - shares[1]).abs().max() > 0.03
    drawn = model.sample(10_000, make_generator(0, "s"), SamplingOptions())
    found = (drawn @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16)
    torch.testing.assert_close(found / 10_000, 0.75 * shares[0] + 0.25 * shares[1], rtol=0, atol=0.015)


def test_pixels_are_drawn_black_with_the_chance_of_their_grey_level() -> None:
    model = model_of(picture(1, 3, levels=5), binarise="dynamic")
    drawn = model._observed(torch.tensor([0, 1, 4]).expand(20_000, 3), Noise(make_generator(0, "n")))
    torch.testing.assert_close(drawn.double().mean(0), torch.tensor([0, 0.25, 1]), atol=0.01, rtol=0)
    assert set(model.sample(50, make_generator(0, "s"), SamplingOptions()).unique().tolist()) == {0, 4}
    sums, _ = model.evaluate(batch_of(torch.full((7, 3), 4)), Noise(make_generator(0, "n")))
    assert model.summarise(sums)["nll_nats"] == pytest.approx(3 * model.summarise(sums)["nats_per_token"])


def test_variational_mask_is_one_for_all_steps_of_an_example() -> None:
    spec = RecurrentBackboneSpec(kind="recurrent", cell="gru", hidden_size=64, dropout=0.5, variational=True)
    recurrent = Recurrent(4, spec).train()
    hidden, _ = recurrent(torch.randn(3, 10, 4), None, Noise(make_generator(0, "n")))
    dropped = (hidden == 0).all(1)
    assert ((hidden == 0).any(1) == dropped).all()
    assert 0.3 < dropped.double().mean() < 0.7
    assert not dropped[0].equal(dropped[1])


def test_embedding_dropout_takes_a_symbol_out_of_all_its_places() -> None:
    layout = Layout("text", "tokens", (64,), "uint8", "categorical", vocabulary=8)
    model = model_of(layout, backbone={"embedding_dropout": 0.5}).train()
    x = torch.randint(8, (5, 64), generator=make_generator(0, "x"))
    out = (model._embedded(x, Noise(make_generator(0, "n"))) == 0).all(2)
    for row, gone in zip(x, out, strict=True):
        assert all(len(gone[row == symbol].unique()) <= 1 for symbol in range(8))
    assert 0.2 < out.double().mean() < 0.8


def test_layer_norm_gives_hidden_values_of_mean_zero_and_variance_one() -> None:
    spec = RecurrentBackboneSpec(kind="recurrent", cell="lstm", hidden_size=32, layers=2, norm="layer")
    hidden, carry = Recurrent(4, spec)(torch.randn(3, 10, 4))
    torch.testing.assert_close(hidden.mean(2), torch.zeros(3, 10), atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.var(2, unbiased=False), torch.ones(3, 10), atol=2e-2, rtol=0)
    assert not torch.allclose(carry[0].var(2), torch.ones(3, 2), atol=0.1)


def test_sound_that_ended_is_padded() -> None:
    model = model_of(sound(200, 4), history=1)
    with torch.no_grad():
        model.head.bias[4] = 1.0
    drawn = model.sample(30, make_generator(0, "s"), SamplingOptions())
    assert drawn.shape == (30, 200)
    ends = (drawn == 4).int().argmax(1)
    for row, end in zip(drawn, ends.tolist(), strict=True):
        assert (row[end + 1 :] == 5).all()
        assert math.isfinite(float(model.token_nats(row.unsqueeze(0))[0, : end + 1].sum()))


@pytest.mark.parametrize(
    ("modality", "family", "said"),
    [
        ("text", {"history": 2}, "model.family.history needs data.codec.kind 'raster' or 'mu_law'"),
        ("text", {"frame": 4, "readout": [8]}, "model.family.frame needs"),
        ("audio", {"rows_above": 1}, "model.family.rows_above needs data.codec.kind 'raster'"),
        ("audio", {"binarise": "dynamic"}, "model.family.binarise needs data.codec.kind 'raster'"),
        ("image", {"frame": 4}, "set readout"),
        ("image", {"rows_above": 1, "columns_above": 4}, "must be odd"),
        ("image", {"tied_embeddings": True, "readout": [8]}, "choose one"),
    ],
)
def test_options_that_do_not_fit_are_refused(modality: str, family: dict[str, Any], said: str) -> None:
    spec = cell_spec("rnn", modality).as_dict()
    spec["model"]["family"] |= family
    with pytest.raises(SpecError, match=said):
        make_spec(spec)


def test_reading_on_gives_what_reading_at_once_gives() -> None:
    layout = Layout("text", "tokens", (9,), "uint8", "categorical", vocabulary=5, continuous=True)
    model = model_of(layout, backbone={"layers": 2})
    text = torch.randint(5, (2, 9), generator=make_generator(0, "text"))
    whole, _ = model.read(text)
    _, carry = model.read(text[:, :4])
    logits, _ = model.read(text[:, 4:], carry)
    torch.testing.assert_close(logits, whole)
    nats = torch.nn.functional.cross_entropy(model.read(text[:, :-1])[0], text[:, -1], reduction="none")
    torch.testing.assert_close(nats, model.token_nats(text)[:, -1])
