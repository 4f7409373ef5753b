"""Transposed convolutions computed as plain ones: the same sums, by kernels that are faster.

Plain PyTorch. Every output of a transposed convolution of stride s belongs to one of s phases (s^2 in two dimensions),
and all outputs of a phase are a plain convolution of the input with every s-th tap of the kernel (Shi et al. 2016, "Is
the deconvolution layer the same as a convolution layer?"). So one convolution gives all phases as channels, which are
then put beside each other. The layers hold the parameters of PyTorch's own, under the same names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def transposed_by_phases(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, output_padding: int
) -> Tensor:
    """`[B, C, *space]` to `[B, D, *(s (n - 1) - 2 padding + k + output_padding)]`, as `conv_transpose1d` and `2d` with
    `weight` `[C, D, *k]`, whose extents k are multiples of the stride."""
    dimensions, (inputs, outputs), taps = x.dim() - 2, weight.shape[:2], weight.shape[2] // stride
    # Whole strides of the padding are left out, and the rest is cut off.
    whole, rest = divmod(padding, stride)
    parts = weight.reshape(inputs, outputs, *[taps, stride] * dimensions)  # (taps, phase) of each dimension
    if dimensions == 1:
        plain = parts.flip(2).permute(1, 3, 0, 2).flatten(0, 1)
        of_phases = None if bias is None else bias.repeat_interleave(stride)
        phases = F.conv1d(x, plain, of_phases, padding=taps - 1 - whole)
        laid_out = phases.unflatten(1, (outputs, stride)).transpose(2, 3).flatten(2)
    else:
        # Channels innermost in memory, so that what is moved are runs of them.
        plain = parts.flip(2, 4).permute(3, 5, 1, 0, 2, 4).flatten(0, 2).contiguous(memory_format=torch.channels_last)
        of_phases = None if bias is None else bias.repeat(stride**2)
        phases = F.conv2d(x, plain, of_phases, padding=taps - 1 - whole)
        apart = phases.permute(0, 2, 3, 1).unflatten(3, (stride, stride, outputs))
        laid_out = apart.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
    for dimension, (extent, kernel) in enumerate(zip(x.shape[2:], weight.shape[2:], strict=True), start=2):
        length = stride * (extent - 1) - 2 * padding + kernel + output_padding
        if length != laid_out.shape[dimension]:
            laid_out = laid_out.narrow(dimension, rest, length)
    return laid_out


class TransposedConv1d(nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` whose kernel is a multiple of its stride, by phases: on two cores forwards and backwards
    took 0.5 to 0.99 of the time, in single precision and in bfloat16."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        return _by_phases(self, input)


class TransposedConv2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` whose kernel is a multiple of its stride; by phases on a GPU, where cuDNN takes the gradient
    of the 6 x 6 kernel of stride 2 to its weights at 50 TFLOP/s in bfloat16 (an H100; plain ones 600), which was two
    thirds of an autoencoder's step. On a CPU neither way wins."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        return _by_phases(self, input) if input.device.type == "cuda" else super().forward(input)


def _by_phases(layer: nn.ConvTranspose1d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    stride, padding, more = layer.stride[0], layer.padding[0], layer.output_padding[0]
    assert isinstance(padding, int)
    return transposed_by_phases(x, layer.weight, layer.bias, stride, padding, more)
