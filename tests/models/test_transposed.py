"""Transposed convolutions by phases are PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.models.transposed import TransposedConv1d, transposed_by_phases


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "output_padding"),
    [(6, 2, 2, 0), (4, 2, 1, 0), (16, 4, 6, 0), (28, 4, 12, 0), (9, 3, 3, 0), (6, 3, 2, 1), (2, 2, 0, 0)],
)
def test_phases_put_beside_each_other_are_the_transposed_convolution(
    dimensions: int, kernel: int, stride: int, padding: int, output_padding: int
) -> None:
    torch.manual_seed(0)
    kind = nn.ConvTranspose1d if dimensions == 1 else nn.ConvTranspose2d
    layer = kind(3, 2, kernel, stride=stride, padding=padding, output_padding=output_padding).double()
    x = torch.randn(2, 3, *[5, 7][:dimensions], dtype=torch.float64, requires_grad=True)
    known, found = layer(x), transposed_by_phases(x, layer.weight, layer.bias, stride, padding, output_padding)
    torch.testing.assert_close(found, known)
    variables = [x, *layer.parameters()]
    weights = torch.randn_like(known)
    for one, other in zip(
        torch.autograd.grad((known * weights).sum(), variables),
        torch.autograd.grad((found * weights).sum(), variables),
        strict=True,
    ):
        torch.testing.assert_close(other, one)


def test_a_layer_has_the_parameters_of_pytorchs_own() -> None:
    own, ours = nn.ConvTranspose1d(3, 2, 16, stride=4, padding=6), TransposedConv1d(3, 2, 16, stride=4, padding=6)
    ours.load_state_dict(own.state_dict())
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(ours(x), own(x))
