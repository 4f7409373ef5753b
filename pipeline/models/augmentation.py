"""Differentiable augmentation: what a critic sees of real and of generated examples is changed by one policy.

Plain PyTorch (Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", eq. 4 to 6). Each
example's change is drawn from the step's noise, and gradients pass through it to the generator, so that a critic cannot
learn a small corpus by heart and a generator is not taught to draw the changes. Signals of any dimension: pictures
`[B, C, H, W]`, log-mel `[B, 1, mels, frames]`, waveforms `[B, 1, T]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pipeline.data.layout import Layout
from pipeline.models.base import Noise

SHIFTED = 1 / 8
"""The largest translation, as a share of each dimension."""
CUT_OUT = 1 / 2
"""The side of what `cutout` hides, as a share of each dimension."""
MASKED = 1 / 4
"""The longest span of time that `time_mask` hides."""
LOUDER = 2.0
"""The largest factor by which `gain` changes a waveform's amplitude, up or down; the same in a log-mel signal."""
MEL_RANGE_NATS = 11.512925464970229
"""What a log-mel signal's range stands for: magnitudes from 1e-5 to 1."""


def _each(noise: Noise, x: Tensor) -> Tensor:
    """A uniform number in [0, 1) an example, `[B, 1, ...]`."""
    return noise.uniform(len(x)).view(-1, *[1] * (x.dim() - 1)).to(x.dtype)


def colour(x: Tensor, noise: Noise, layout: Layout) -> Tensor:
    """Brightness by up to a quarter of the range, saturation by a factor up to 2, contrast by one in [0.5, 1.5]."""
    brightness, saturation, contrast = (_each(noise, x) for _ in range(3))
    x = x + (brightness - 0.5) * (layout.high - layout.low) / 2
    if layout.channels > 1:
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * 2 * saturation
    middle = x.flatten(1).mean(1).view(-1, *[1] * (x.dim() - 1))
    return middle + (x - middle) * (0.5 + contrast)


def translation(x: Tensor, noise: Noise, layout: Layout) -> Tensor:
    """Moved by up to an eighth of each dimension; silence or black comes in."""
    for dimension in range(2, x.dim()):
        x = _moved(x, dimension, noise, layout)
    return x


def shift(x: Tensor, noise: Noise, layout: Layout) -> Tensor:
    """Moved in time alone, by up to an eighth."""
    return _moved(x, x.dim() - 1, noise, layout)


def cutout(x: Tensor, noise: Noise, layout: Layout) -> Tensor:
    """A box of half of each dimension hidden, its centre anywhere."""
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    for dimension in range(2, x.dim()):
        inside = inside & _span(x, dimension, _each(noise, x), CUT_OUT)
    return torch.where(inside, _nothing(layout), x)


def time_mask(x: Tensor, noise: Noise, layout: Layout) -> Tensor:
    """A span of up to a quarter of the time hidden (SpecAugment, Park et al. 2019, without its masks of frequency)."""
    centre, length = _each(noise, x), _each(noise, x)
    return torch.where(_span(x, x.dim() - 1, centre, MASKED * length), _nothing(layout), x)


def gain(x: Tensor, noise: Noise, layout: Layout) -> Tensor:
    """Louder or softer by a factor of up to 2: a product for waveforms, a sum for logarithms of magnitudes."""
    nats = (2 * _each(noise, x) - 1) * math.log(LOUDER)
    if x.dim() == 3:
        return x * nats.exp()
    return x + nats * (layout.high - layout.low) / MEL_RANGE_NATS


AUGMENTATIONS: dict[str, Callable[[Tensor, Noise, Layout], Tensor]] = {
    "colour": colour,
    "translation": translation,
    "cutout": cutout,
    "shift": shift,
    "time_mask": time_mask,
    "gain": gain,
}


def augment(x: Tensor, names: Iterable[str], noise: Noise, layout: Layout) -> Tensor:
    """`x` `[B, C, *space]`, real or generated, changed by the augmentations in order, each example by its own draw."""
    for name in names:
        x = AUGMENTATIONS[name](x, noise, layout)
    return x


def _nothing(layout: Layout) -> float:
    """The value of silence or black: 0 for a waveform, the least for pictures and logarithms of magnitudes."""
    return 0.0 if layout.modality == "audio" and len(layout.space) == 1 else layout.low


def _moved(x: Tensor, dimension: int, noise: Noise, layout: Layout) -> Tensor:
    size = x.shape[dimension]
    most = int(size * SHIFTED)
    steps = (_each(noise, x) * (2 * most + 1)).floor().long() - most
    source = _places(x, dimension) - steps  # [B, 1, ..., size, ..., 1]
    moved = x.gather(dimension, source.clamp(0, size - 1).expand_as(x))
    return torch.where((source >= 0) & (source < size), moved, _nothing(layout))


def _span(x: Tensor, dimension: int, centre: Tensor, share: Tensor | float) -> Tensor:
    """Which places along a dimension are within `share` of it around `centre` (a share too), bool."""
    size = x.shape[dimension]
    return ((_places(x, dimension) + 0.5) / size - centre).abs() < share / 2


def _places(x: Tensor, dimension: int) -> Tensor:
    shape = [1] * x.dim()
    shape[dimension] = x.shape[dimension]
    return torch.arange(x.shape[dimension], device=x.device).view(shape)
