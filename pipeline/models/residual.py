"""Residual networks between a signal and a vector, in one or two dimensions (He et al. 2016, identity mappings).

Plain PyTorch. A block normalises, activates and convolves twice, and adds what came in. Between levels the signal is
averaged down or repeated up, so that neither direction draws a checkerboard (Odena et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.spec import ConvBackboneSpec, ResnetBackboneSpec

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}

CHANNELS_A_GROUP = 8


def levels_of(space: Sequence[int], backbone: ConvBackboneSpec | ResnetBackboneSpec) -> list[tuple[int, ...]]:
    """The extents of the signal and of every level, outermost first."""
    levels = [tuple(space)]
    for _ in backbone.channels:
        levels.append(tuple(-(-extent // backbone.stride) for extent in levels[-1]))
    return levels


def cut(x: Tensor, extent: Sequence[int]) -> Tensor:
    """The first `extent` of a signal `[B, C, *space]`, each dimension of which is at least as large."""
    for dimension, size in enumerate(extent, start=2):
        x = x.narrow(dimension, 0, size)
    return x


class ResidualBlock(nn.Module):
    """x + f(x) at one extent, `[B, before, *space]` to `[B, after, *space]`; x through a 1-wide convolution where the
    widths differ."""

    def __init__(self, before: int, after: int, dimensions: int, backbone: ResnetBackboneSpec) -> None:
        super().__init__()
        convolution = nn.Conv1d if dimensions == 1 else nn.Conv2d
        kernel, padding = backbone.kernel, backbone.kernel // 2
        self.branch = nn.Sequential(
            _norm(before, backbone),
            ACTIVATIONS[backbone.activation](),
            convolution(before, after, kernel, padding=padding),
            _norm(after, backbone),
            ACTIVATIONS[backbone.activation](),
            convolution(after, after, kernel, padding=padding),
        )
        self.skip = nn.Identity() if before == after else convolution(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.skip(x) + self.branch(x)
        return hidden


class _Shrink(nn.Module):
    """Averages every `stride` neighbours in each dimension; a last, incomplete group is averaged over what it has."""

    def __init__(self, dimensions: int, stride: int) -> None:
        super().__init__()
        pool = nn.AvgPool1d if dimensions == 1 else nn.AvgPool2d
        self.pool = pool(stride, ceil_mode=True, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(x)
        return pooled


def resnet_body(shape: Sequence[int], backbone: ResnetBackboneSpec) -> nn.Sequential:
    """`[B, C, *space]` to `[B, channels[-1], *inner]`."""
    dimensions = len(shape) - 1
    convolution = nn.Conv1d if dimensions == 1 else nn.Conv2d
    width = backbone.channels[0]
    layers: list[nn.Module] = [convolution(shape[0], width, backbone.kernel, padding=backbone.kernel // 2)]
    for after in backbone.channels:
        layers.append(_Shrink(dimensions, backbone.stride))
        layers.append(ResidualBlock(width, after, dimensions, backbone))
        layers += [ResidualBlock(after, after, dimensions, backbone) for _ in range(backbone.blocks - 1)]
        width = after
    return nn.Sequential(*layers, _norm(width, backbone), ACTIVATIONS[backbone.activation]())


class ResnetDecoder(nn.Module):
    """A linear layer, then residual blocks that grow: `[B, inputs]` to `[B, C, *space]`."""

    def __init__(self, inputs: int, backbone: ResnetBackboneSpec, shape: Sequence[int]) -> None:
        super().__init__()
        dimensions = len(shape) - 1
        convolution = nn.Conv1d if dimensions == 1 else nn.Conv2d
        self.extents = levels_of(shape[1:], backbone)
        self.stride = backbone.stride
        width = backbone.channels[-1]
        self.stem = nn.Linear(inputs, width * math.prod(self.extents[-1]))
        levels: list[nn.Module] = []
        # Level by level outwards: the blocks of a level work at its extent, the last of them at the next one's width.
        for after in [*reversed(backbone.channels[:-1]), backbone.channels[0]]:
            blocks = [ResidualBlock(width, width, dimensions, backbone) for _ in range(backbone.blocks - 1)]
            levels.append(nn.Sequential(*blocks, ResidualBlock(width, after, dimensions, backbone)))
            width = after
        self.levels = nn.ModuleList(levels)
        self.last = nn.Sequential(
            _norm(width, backbone),
            ACTIVATIONS[backbone.activation](),
            convolution(width, shape[0], backbone.kernel, padding=backbone.kernel // 2),
        )

    def forward(self, z: Tensor) -> Tensor:
        hidden: Tensor = self.stem(z).view(z.shape[0], -1, *self.extents[-1])
        for level, extent in zip(self.levels, reversed(self.extents[:-1]), strict=True):
            hidden = F.interpolate(level(hidden), scale_factor=float(self.stride), mode="nearest")
            hidden = cut(hidden, extent)
        outputs: Tensor = self.last(hidden)
        return outputs


def _norm(channels: int, backbone: ResnetBackboneSpec) -> nn.Module:
    if backbone.norm == "none":
        return nn.Identity()
    return nn.GroupNorm(math.gcd(channels, max(1, channels // CHANNELS_A_GROUP)), channels)
