"""How far generated examples are from real ones by a kernel: the squared maximum mean discrepancy of features.

Pure functions of float64 features `[N, D]`, on the driver.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.evaluation.intervals import Estimate, block_numbers, jackknife
from pipeline.evaluation.score import Definition

LARGEST_TILE = 2048
"""Rows and columns of the kernel matrix that are in memory at once."""

DEFINITIONS_OF_KERNEL_DISTANCE: dict[str, Definition] = {
    "kid": Definition(
        "Kernel distance",
        "squared kernel distance",
        "lower",
        "How different real and generated examples are in the means, spreads and skews of their features, without "
        "assuming a Gaussian and without a bias by the number of examples: 0 for a perfect model, and it may come out "
        "below. In the space of Inception's features it is known as KID.",
        fewest=20,
        enough=500,
    ),
    "kid_floor": Definition(
        "Kernel floor",
        "squared kernel distance",
        None,
        "The same distance between two disjoint halves of real examples: 0 but for chance.",
        fewest=20,
        enough=500,
    ),
}


def kernel_distance(x: Tensor, y: Tensor) -> Estimate:
    """Unbiased squared MMD of `x` `[n, D]` and `y` `[m, D]` under k(a, b) = (a·b / D + 1)^3, with its interval.

    Lower is better. Sources: Gretton et al. (2012), eq. 3; the kernel of Bińkowski et al. (2018), section 3.1, "KID".
    They average over random subsets, here all pairs are taken: the same expectation with the least variance. The
    interval is a jackknife over ten blocks, left out of both sets; where both sets are of one distribution it is too
    wide, as the statistic is degenerate there.
    """
    n, m = len(x), len(y)
    own_x, own_y = block_numbers(n), block_numbers(m)
    blocks = 1 + int(min(own_x.max(), own_y.max()))
    xx, yy, xy = _sums(x, x, own_x, own_x, True), _sums(y, y, own_y, own_y, True), _sums(x, y, own_x, own_y, False)
    sizes_x, sizes_y = own_x.bincount(), own_y.bincount()

    def without(block: int | None) -> float:
        kept = torch.arange(len(xx)) if block is None else (torch.arange(len(xx)) != block).nonzero().squeeze(1)
        kept_y = torch.arange(len(yy)) if block is None else (torch.arange(len(yy)) != block).nonzero().squeeze(1)
        a, b = float(sizes_x[kept].sum()), float(sizes_y[kept_y].sum())
        within = float(xx[kept][:, kept].sum()) / (a * (a - 1)) + float(yy[kept_y][:, kept_y].sum()) / (b * (b - 1))
        return within - 2 * float(xy[kept][:, kept_y].sum()) / (a * b)

    return jackknife(without(None), [without(block) for block in range(blocks)])


def _sums(x: Tensor, y: Tensor, own_x: Tensor, own_y: Tensor, same: bool) -> Tensor:
    """Sums of the kernel over each pair of blocks, float64 `[blocks of x, blocks of y]`; without pairs of an example
    with itself when both are the `same` set."""
    one_x, one_y = functional.one_hot(own_x).double(), functional.one_hot(own_y).double()
    sums = one_x.new_zeros(one_x.shape[1], one_y.shape[1])
    for start in range(0, len(x), LARGEST_TILE):
        rows = slice(start, start + LARGEST_TILE)
        for begin in range(0, len(y), LARGEST_TILE):
            columns = slice(begin, begin + LARGEST_TILE)
            sums += one_x[rows].T @ _kernel(x[rows] @ y[columns].T, x.shape[1]) @ one_y[columns]
    if same:
        sums -= (one_x.T @ _kernel(x.square().sum(1), x.shape[1])).diag()
    return sums


def _kernel(products: Tensor, size: int) -> Tensor:
    return (products / size + 1) ** 3
