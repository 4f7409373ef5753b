"""How much fine detail pictures and sounds have, by themselves: little where a model blurs, too much where it is noise.

Plain PyTorch, on the driver or any worker. No network and no other example is asked, so a figure of generated examples
is compared with that of held-out ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.evaluation.intervals import Estimate, Interval
from pipeline.evaluation.score import Definition

HELD_OUT = "_held_out"
Z_975 = 1.959963984540054

DEFINITIONS_OF_DETAIL: dict[str, Definition] = {
    "roughness": Definition(
        "Roughness",
        "share of the variance",
        None,
        "How much neighbouring pixels or samples differ, for the contrast the example has: 0 for smooth ones, 1 for "
        "white noise. Far below held-out examples a model blurs, far above them it is noise. The median example's.",
    ),
    "contrast": Definition(
        "Contrast",
        "standard deviation",
        None,
        "How far the values of an example spread around their mean: pale pictures and faint sounds have little. The "
        "median example's.",
    ),
}
DEFINITIONS_OF_DETAIL |= {
    key + HELD_OUT: Definition(
        f"{one.title}, held-out", one.unit, None, "The same of held-out examples: what a perfect model would score."
    )
    for key, one in DEFINITIONS_OF_DETAIL.items()
}


def contrast(x: Tensor) -> Tensor:
    """Standard deviation of each example's values, float64 `[N]`, of `x` `[N, C, *space]`."""
    return x.double().flatten(1).std(1, correction=0)


def roughness(x: Tensor) -> Tensor:
    """Half the mean squared difference of neighbours over the variance, float64 `[N]`, of `x` `[N, C, *space]`.

    The ratio of von Neumann (1941) over two, the mean over the axes of space: one minus the correlation of neighbours,
    1 - phi for an autoregression of order one. 0 for an example without contrast.
    """
    x = x.double()
    variance = contrast(x).square()
    axes = range(2, x.ndim)
    squares = [x.diff(dim=axis).square().flatten(1).mean(1) for axis in axes]
    return torch.where(variance > 0, torch.stack(squares).mean(0) / (2 * variance), 0.0)


def measure_detail(generated: Tensor, held_out: Tensor) -> dict[str, Estimate]:
    """Value and 95% interval of each score in `DEFINITIONS_OF_DETAIL`, of examples `[N, C, *space]` of a layout."""
    return {
        key + suffix: median(of(x))
        for suffix, x in (("", generated), (HELD_OUT, held_out))
        for key, of in (("roughness", roughness), ("contrast", contrast))
    }


def median(values: Tensor) -> tuple[float, Interval]:
    """The median of `values` `[N]` and its 95% interval between two of them (Conover 1999, section 3.2, normal)."""
    ordered = values.sort().values
    count = len(ordered)
    half = Z_975 * math.sqrt(count) / 2
    low, high = max(0, math.floor(count / 2 - half)), min(count - 1, math.ceil(count / 2 + half))
    return float(values.quantile(0.5)), (float(ordered[low]), float(ordered[high]))
