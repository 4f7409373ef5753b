"""Spectral normalisation: a critic's layers divided by their largest singular value, so that each is 1-Lipschitz.

Plain PyTorch. The usual power iteration (Miyato et al. 2018, algorithm 1) goes one step on in every forward pass from a
vector that it keeps, which a checkpoint would have to hold and ranks would have to share. Here the value is a function
of the weights alone: squaring their Gram matrix nine times is 512 of those steps, for less than a layer's forward pass
costs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

SQUARINGS = 9
NORMALISED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)


def largest_singular_value(weight: Tensor) -> Tensor:
    """That of a weight seen as a matrix `[outputs, everything else]`, a scalar through which gradients pass.

    Its gradient is that of u^T W v with u and v held fixed, which is exact at the singular vectors.
    """
    matrix = weight.flatten(1)
    with torch.no_grad():
        wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
        power = wide @ wide.T  # [n, n] with n the smaller side
        for _ in range(SQUARINGS):
            power = power / power.diagonal().sum().clamp(min=1e-30)
            power = power @ power
        # All columns have become multiples of the first singular vector; the longest has lost least to rounding.
        longest = power.diagonal().argmax()
        first = nn.functional.normalize(power.index_select(1, longest.view(1)), dim=0)
        second = nn.functional.normalize(wide.T @ first, dim=0)
        u, v = (first, second) if wide is matrix else (second, first)
    return (u.T @ matrix @ v).squeeze()


class _UnitSpectrum(nn.Module):
    """W / sigma(W); single precision where networks compute with half as many bits."""

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return weight / largest_singular_value(weight).clamp(min=1e-12)


def normalise_spectra(network: nn.Module) -> None:
    """Give every linear layer, convolution and embedding of `network` a largest singular value of 1 from now on."""
    for module in list(network.modules()):
        if isinstance(module, NORMALISED):
            parametrize.register_parametrization(module, "weight", _UnitSpectrum())
