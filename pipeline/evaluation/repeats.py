"""Is it varied? How many generated examples repeat another one.

Plain PyTorch, on the driver. A model with a few outputs repeats them in any number of draws, though each of them may
be as good as a real example; measures of distance between distributions may not see it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.evaluation.intervals import Estimate, binomial
from pipeline.evaluation.neighbours import nearest
from pipeline.evaluation.novelty import SIGNAL
from pipeline.evaluation.score import Definition

HELD_OUT = "_held_out"

DEFINITIONS_OF_REPEATS: dict[str, Definition] = {
    "repeated_share": Definition(
        "Outputs that repeat another",
        "share of generated",
        "lower",
        "Generated examples that are as near to another generated one as only the closest 1% of held-out examples are "
        "to each other: near 1 when the model has a few outputs only.",
    ),
    "repeated_share_held_out": Definition(
        "Held-out examples that repeat another",
        "share of held-out",
        None,
        "The same of as many held-out examples: 0.01, and more where the split has near-duplicates.",
    ),
}
DEFINITIONS_OF_REPEATS |= {
    SIGNAL + key: Definition(
        f"{one.title}, in the model's own representation",
        one.unit,
        one.better,
        one.reading + " Here over pixels, samples or the spectrogram and not over features.",
    )
    for key, one in DEFINITIONS_OF_REPEATS.items()
}


def likeness_to_another(x: Tensor) -> Tensor:
    """Distance to the nearest other example over the root mean square distance to all others, float64 `[N]`, of `x`
    `[N, D]`: 0 for a repeat, and unchanged when all distances shrink."""
    count = len(x)
    own = nearest(x, x, exclude=torch.arange(count)).distances[:, 0]
    squares = (x - x.mean(0)).double().square().sum(1)
    # The mean over j of |x_i - x_j|^2 is |x_i - mean|^2 + the mean of |x_j - mean|^2.
    around = ((squares + squares.mean()) * count / (count - 1)).sqrt()
    return torch.where(around > 0, own / around, 0.0)


def measure_repeats(generated: Tensor, held_out: Tensor, prefix: str = "") -> dict[str, Estimate]:
    """Value and 95% interval of each score in `DEFINITIONS_OF_REPEATS` that begins with `prefix`, "" or `SIGNAL`.

    Of the first examples `[N, D]` of each, as many as the smaller set has; at least 20. Repeats come in pairs, so the
    interval is the binomial one of half as many.
    """
    count = min(len(generated), len(held_out))
    ours, theirs = likeness_to_another(generated[:count]), likeness_to_another(held_out[:count])
    limit = theirs.quantile(0.01)
    shares = {"repeated_share": ours, "repeated_share_held_out": theirs}
    found: dict[str, Estimate] = {}
    for key, values in shares.items():
        share = float((values <= limit).double().mean())
        found[prefix + key] = share, binomial(share * count / 2, count / 2)
    return found
