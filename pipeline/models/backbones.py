"""Backbones: networks built from a layout, between a signal and a vector, or along a sequence of tokens.

Plain PyTorch. `make_encoder` and `make_decoder` serve signals `[B, C, *space]`, in one or two dimensions;
`Recurrent` serves tokens; the residual networks are in `residual.py`. None of them normalises over the batch, so that N
workers equal one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.base import Noise
from pipeline.models.recurrence import run_recurrent
from pipeline.models.residual import ACTIVATIONS, ResnetDecoder, cut, levels_of, resnet_body
from pipeline.models.transposed import TransposedConv1d, TransposedConv2d
from pipeline.spec import ConvBackboneSpec, MlpBackboneSpec, RecurrentBackboneSpec, ResnetBackboneSpec

SignalBackbone = MlpBackboneSpec | ConvBackboneSpec | ResnetBackboneSpec


class SignalEncoder(nn.Module):
    """From a signal `[B, *shape]` to `[B, outputs]`: a body gives features, a linear head the outputs.

    The head also sees the condition, where there is one, behind the features.
    """

    def __init__(self, body: nn.Module, num_features: int, outputs: int, condition_size: int) -> None:
        super().__init__()
        self.body, self.num_features = body, num_features
        self.head = nn.Linear(num_features + condition_size, outputs)

    def features(self, x: Tensor) -> Tensor:
        """What the body sees in x, `[B, num_features]`."""
        hidden: Tensor = self.body(x)
        return hidden.flatten(1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        features = self.features(x)
        outputs: Tensor = self.head(features if condition is None else torch.cat([features, condition], dim=1))
        return outputs


def make_encoder(
    shape: Sequence[int], backbone: SignalBackbone, outputs: int, condition_size: int = 0
) -> SignalEncoder:
    """A network from a signal `[B, *shape]`, and a condition `[B, condition_size]`, to `[B, outputs]`."""
    if isinstance(backbone, MlpBackboneSpec):
        body: nn.Module = nn.Sequential(nn.Flatten(), *_mlp([math.prod(shape), *backbone.hidden], backbone))
        return SignalEncoder(body, backbone.hidden[-1], outputs, condition_size)
    num_features = backbone.channels[-1] * math.prod(levels_of(shape[1:], backbone)[-1])
    body = conv_body(shape, backbone) if isinstance(backbone, ConvBackboneSpec) else resnet_body(shape, backbone)
    return SignalEncoder(body, num_features, outputs, condition_size)


def make_decoder(inputs: int, backbone: SignalBackbone, shape: Sequence[int]) -> nn.Module:
    """A network from a vector `[B, inputs]` to a signal `[B, *shape]`, unbounded; a condition is part of the vector."""
    if isinstance(backbone, ConvBackboneSpec):
        return ConvDecoder(inputs, backbone, shape)
    if isinstance(backbone, ResnetBackboneSpec):
        return ResnetDecoder(inputs, backbone, shape)
    widths = [inputs, *reversed(backbone.hidden)]
    last = nn.Linear(widths[-1], math.prod(shape))
    return nn.Sequential(*_mlp(widths, backbone), last, nn.Unflatten(1, tuple(shape)))


def _mlp(widths: Sequence[int], backbone: MlpBackboneSpec) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layer: list[nn.Module] = [nn.Linear(before, after)]
        if backbone.norm == "layer":
            layer.append(nn.LayerNorm(after))
        layer.append(ACTIVATIONS[backbone.activation]())
        layers += [_Residual(*layer)] if backbone.residual and before == after else layer
    return layers


class _Residual(nn.Sequential):
    """x + f(x), `[B, D]` to `[B, D]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def conv_body(shape: Sequence[int], backbone: ConvBackboneSpec) -> nn.Sequential:
    """Strided convolutions, one a level: `[B, C, *space]` to `[B, channels[-1], *inner]`."""
    convolution = nn.Conv1d if len(shape) == 2 else nn.Conv2d
    widths = [shape[0], *backbone.channels]
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers.append(convolution(before, after, backbone.kernel, stride=backbone.stride, padding=backbone.kernel // 2))
        layers.append(ACTIVATIONS[backbone.activation]())
    return nn.Sequential(*layers)


class ConvDecoder(nn.Module):
    """A linear layer, then transposed convolutions, one a level: `[B, inputs]` to `[B, C, *space]`.

    The transposed kernel is a multiple of the stride, so that every output sees equally many inputs: without
    that they draw checkerboards (Odena et al. 2016). Each level is cut to the extent that the encoder had there.
    """

    def __init__(self, inputs: int, backbone: ConvBackboneSpec, shape: Sequence[int]) -> None:
        super().__init__()
        transposed = TransposedConv1d if len(shape) == 2 else TransposedConv2d
        self.extents = levels_of(shape[1:], backbone)
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
            hidden = cut(hidden, extent)
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
            hidden, after = run_recurrent(layer, hidden, state)
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


class TiedHead(nn.Module):
    """The softmax over the rows of the embedding itself (Press and Wolf 2017), `[..., H]` to logits `[..., V]`; a state
    of another size than the embedding's is projected first (Inan et al. 2017), which makes a large vocabulary cheap."""

    def __init__(self, hidden_size: int, embedding_size: int, symbols: int) -> None:
        super().__init__()
        fits = hidden_size == embedding_size
        self.project = nn.Identity() if fits else nn.Linear(hidden_size, embedding_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(symbols))

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(self.project(hidden), embedding, self.bias)
