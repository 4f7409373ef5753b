"""Backbones: networks built from a layout, between a signal and a vector, or along a sequence of tokens.

Plain PyTorch. `make_encoder` and `make_decoder` serve signals `[B, C, *space]`, in one or two dimensions;
`Recurrent` serves tokens. None of them normalises over the batch, so that N workers equal one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.models.base import Noise
from pipeline.spec import ConvBackboneSpec, MlpBackboneSpec, RecurrentBackboneSpec

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}

SignalBackbone = MlpBackboneSpec | ConvBackboneSpec


def make_encoder(shape: Sequence[int], backbone: SignalBackbone, outputs: int) -> nn.Module:
    """A network from a signal `[B, *shape]` to `[B, outputs]`."""
    if isinstance(backbone, ConvBackboneSpec):
        return ConvEncoder(shape, backbone, outputs)
    return nn.Sequential(nn.Flatten(), _mlp([math.prod(shape), *backbone.hidden], outputs, backbone))


def make_decoder(inputs: int, backbone: SignalBackbone, shape: Sequence[int]) -> nn.Module:
    """A network from a vector `[B, inputs]` to a signal `[B, *shape]`, unbounded."""
    if isinstance(backbone, ConvBackboneSpec):
        return ConvDecoder(inputs, backbone, shape)
    widths = [inputs, *reversed(backbone.hidden)]
    return nn.Sequential(_mlp(widths, math.prod(shape), backbone), nn.Unflatten(1, tuple(shape)))


def _mlp(widths: Sequence[int], outputs: int, backbone: MlpBackboneSpec) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layer: list[nn.Module] = [nn.Linear(before, after)]
        if backbone.norm == "layer":
            layer.append(nn.LayerNorm(after))
        layer.append(ACTIVATIONS[backbone.activation]())
        layers += [_Residual(*layer)] if backbone.residual and before == after else layer
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


class _Residual(nn.Sequential):
    """x + f(x), `[B, D]` to `[B, D]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _extents(space: Sequence[int], backbone: ConvBackboneSpec) -> list[tuple[int, ...]]:
    """The extents of the signal and of every level, outermost first."""
    levels = [tuple(space)]
    for _ in backbone.channels:
        levels.append(tuple(-(-extent // backbone.stride) for extent in levels[-1]))
    return levels


class ConvEncoder(nn.Module):
    """Strided convolutions, one a level, then a linear layer: `[B, C, *space]` to `[B, outputs]`."""

    def __init__(self, shape: Sequence[int], backbone: ConvBackboneSpec, outputs: int) -> None:
        super().__init__()
        convolution = nn.Conv1d if len(shape) == 2 else nn.Conv2d
        widths = [shape[0], *backbone.channels]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers.append(
                convolution(before, after, backbone.kernel, stride=backbone.stride, padding=backbone.kernel // 2)
            )
            layers.append(ACTIVATIONS[backbone.activation]())
        self.levels = nn.Sequential(*layers)
        inner = _extents(shape[1:], backbone)[-1]
        self.head = nn.Linear(widths[-1] * math.prod(inner), outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.levels(x)
        return self.head(hidden.flatten(1))


class ConvDecoder(nn.Module):
    """A linear layer, then transposed convolutions, one a level: `[B, inputs]` to `[B, C, *space]`.

    The transposed kernel is a multiple of the stride, so that every output sees equally many inputs: without
    that they draw checkerboards (Odena et al. 2016). Each level is cut to the extent that the encoder had there.
    """

    def __init__(self, inputs: int, backbone: ConvBackboneSpec, shape: Sequence[int]) -> None:
        super().__init__()
        transposed = nn.ConvTranspose1d if len(shape) == 2 else nn.ConvTranspose2d
        self.extents = _extents(shape[1:], backbone)
        widths = [shape[0], *backbone.channels]
        self.stem = nn.Linear(inputs, widths[-1] * math.prod(self.extents[-1]))
        self.activation = ACTIVATIONS[backbone.activation]()
        stride = backbone.stride
        taps = max(2, math.ceil(backbone.kernel / stride))
        excess = (taps - 1) * stride
        self.levels = nn.ModuleList(
            transposed(
                widths[level + 1],
                widths[level],
                taps * stride,
                stride=stride,
                padding=math.ceil(excess / 2),
                output_padding=excess % 2,
            )
            for level in reversed(range(len(backbone.channels)))
        )

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.stem(z).view(z.shape[0], -1, *self.extents[-1])
        for level, extent in zip(self.levels, reversed(self.extents[:-1]), strict=True):
            hidden = level(self.activation(hidden))
            hidden = hidden[(..., *(slice(size) for size in extent))]
        return hidden


Carry = tuple[Tensor, ...]


class Recurrent(nn.Module):
    """Stacked GRU or LSTM layers over vectors `[B, T, inputs]`, giving `[B, T, hidden_size]`.

    The carried state is batch-first, `[B, layers, hidden_size]`, once for a GRU and twice (state, cell) for an
    LSTM. Dropout falls on what each layer gives (Zaremba et al. 2014), from the noise that is passed in; not on the
    embedded tokens, where it cost a character model 0.05 nats. `variational` draws one mask an example for all its
    steps, and one for what goes in (Gal and Ghahramani 2016, section 4, but for the mask inside the recurrence).
    `norm: layer` normalises what each layer gives, at each step over its `hidden_size` values (Ba et al. 2016,
    equation 3); the state that it carries is not normalised. A mask or a norm inside the recurrence would take the
    fused kernels away, and with them two thirds of the speed.
    """

    def __init__(self, inputs: int, backbone: RecurrentBackboneSpec) -> None:
        super().__init__()
        cell = nn.LSTM if backbone.cell == "lstm" else nn.GRU
        sizes = [inputs] + [backbone.hidden_size] * (backbone.layers - 1)
        self.layers = nn.ModuleList(cell(size, backbone.hidden_size, batch_first=True) for size in sizes)
        normed = backbone.layers if backbone.norm == "layer" else 0
        self.norms = nn.ModuleList(nn.LayerNorm(backbone.hidden_size) for _ in range(normed))
        self.num_states = 2 if backbone.cell == "lstm" else 1
        self.hidden_size, self.dropout, self.variational = backbone.hidden_size, backbone.dropout, backbone.variational
        if backbone.cell == "lstm":
            for name, bias in self.named_parameters():
                if name.endswith("bias_ih_l0"):
                    # A forget gate that starts open lets gradients reach back (Jozefowicz et al. 2015).
                    with torch.no_grad():
                        bias[self.hidden_size : 2 * self.hidden_size].fill_(1.0)

    def forward(self, x: Tensor, carry: Carry | None = None, noise: Noise | None = None) -> tuple[Tensor, Carry]:
        hidden = self._drop(x, noise) if self.variational else x
        last: list[tuple[Tensor, ...]] = []
        for index, layer in enumerate(self.layers):
            state = None
            if carry is not None:
                states = tuple(part[:, index].unsqueeze(0).contiguous() for part in carry)  # [1, B, H]
                state = states if self.num_states == 2 else states[0]
            hidden, after = layer(hidden, state)
            if self.norms:
                hidden = self.norms[index](hidden)
            hidden = self._drop(hidden, noise)
            last.append(after if self.num_states == 2 else (after,))
        stacked = tuple(torch.cat([state[part] for state in last]).transpose(0, 1) for part in range(self.num_states))
        return hidden, stacked

    def _drop(self, x: Tensor, noise: Noise | None) -> Tensor:
        if noise is None or not self.training or self.dropout == 0:
            return x
        if not self.variational:
            return noise.dropout(x, self.dropout)
        keep = 1 - self.dropout
        return x * (noise.uniform(len(x), 1, x.shape[2]) < keep) / keep
