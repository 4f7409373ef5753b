"""Differentiable augmentation: what it changes, by how much, and that gradients and two workers pass through it."""

from __future__ import annotations

import pytest
import torch

from pipeline.data.layout import Layout
from pipeline.models.augmentation import AUGMENTATIONS, augment
from pipeline.models.base import Noise, make_generator

PICTURES = Layout("image", "signal", (3, 16, 16), "uint8", "bernoulli")
MELS = Layout("audio", "signal", (1, 16, 16), "float32", "gaussian", low=-1.0)
WAVES = Layout("audio", "signal", (1, 64), "int16", "gaussian", low=-1.0)
CASES = [
    *((name, PICTURES) for name in ("colour", "translation", "cutout")),
    *((name, layout) for name in ("shift", "gain", "time_mask") for layout in (MELS, WAVES)),
]
IDS = [f"{name}-{layout.modality}-{len(layout.space)}d" for name, layout in CASES]


def noise(rank: int = 0, world_size: int = 1) -> Noise:
    return Noise(make_generator(0, "noise"), rank, world_size)


def examples(layout: Layout, count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(count, *layout.shape, generator=generator, dtype=torch.float64)
    return layout.low + (layout.high - layout.low) * (0.1 + 0.8 * drawn)


@pytest.mark.parametrize(("name", "layout"), CASES, ids=IDS)
def test_it_changes_examples_and_its_gradient_is_the_one_of_finite_differences(name: str, layout: Layout) -> None:
    x = examples(layout, 2).requires_grad_()
    assert not torch.equal(augment(x, [name], noise(), layout), x)
    assert torch.autograd.gradcheck(lambda x: augment(x, [name], noise(), layout), x, atol=1e-6)


@pytest.mark.parametrize(("name", "layout"), CASES, ids=IDS)
def test_real_and_generated_examples_are_changed_by_one_policy(name: str, layout: Layout) -> None:
    """What is done is a function of the noise and the place alone, not of the values: a linear, or affine, map."""
    x, y = examples(layout), examples(layout).flip(0)
    function = AUGMENTATIONS[name]
    middle = function((x + y) / 2, noise(), layout)
    torch.testing.assert_close(middle, (function(x, noise(), layout) + function(y, noise(), layout)) / 2)


@pytest.mark.parametrize(("name", "layout"), CASES, ids=IDS)
def test_two_workers_change_what_one_does(name: str, layout: Layout) -> None:
    x = examples(layout)
    whole = augment(x, [name, name], noise(), layout)
    for rank in range(2):
        part = augment(x[rank::2], [name, name], noise(rank, 2), layout)
        torch.testing.assert_close(part, whole[rank::2])


def test_a_translation_is_a_move_by_at_most_an_eighth_and_lets_black_in() -> None:
    x = torch.zeros(200, 1, 16, 16)
    x[:, :, 8, 8] = 1.0
    layout = Layout("image", "signal", (1, 16, 16), "uint8", "bernoulli")
    moved = AUGMENTATIONS["translation"](x, noise(), layout)
    places = moved[:, 0].nonzero()
    assert len(places) == 200
    assert set((places[:, 1] - 8).tolist()) == set((places[:, 2] - 8).tolist()) == {-2, -1, 0, 1, 2}


def test_what_is_cut_out_is_at_most_a_quarter_of_a_picture_and_often_all_of_that() -> None:
    cut = AUGMENTATIONS["cutout"](torch.ones(500, *PICTURES.shape), noise(), PICTURES)
    hidden = (cut == 0).double().flatten(1).mean(1)
    assert float(hidden.max()) == 0.25
    assert float((hidden == 0.25).double().mean()) > 0.15


def test_masked_time_is_silence_and_at_most_a_quarter() -> None:
    for layout, silence in ((WAVES, 0.0), (MELS, -1.0)):
        masked = AUGMENTATIONS["time_mask"](torch.full((500, *layout.shape), 0.5), noise(), layout)
        assert set(masked.unique().tolist()) == {silence, 0.5}
        assert float((masked == silence).double().flatten(1).mean(1).max()) <= 0.25


def test_gain_is_the_same_for_a_waveform_and_for_its_log_mel() -> None:
    wave = AUGMENTATIONS["gain"](torch.full((1000, *WAVES.shape), 0.2), noise(), WAVES)
    factors = wave[:, 0, 0] / 0.2
    assert 0.5 <= float(factors.min()) < 0.55
    assert 1.9 < float(factors.max()) <= 2.0
    mel = AUGMENTATIONS["gain"](torch.zeros(1000, *MELS.shape), noise(), MELS)[:, 0, 0, 0]
    # [-1, 1] stands for the logarithms of [1e-5, 1].
    torch.testing.assert_close((mel * 11.5129 / 2).exp(), factors, rtol=1e-4, atol=0)
