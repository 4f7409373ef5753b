"""How varied generated examples are by themselves: the inception score of classes, and the Vendi score of features.

Pure functions of float64 logits `[N, K]` or features `[N, D]`, on the driver. Neither asks for real examples; the same
score of held-out ones says what is to be expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.evaluation.intervals import Estimate, block_numbers, jackknife, within
from pipeline.evaluation.score import Definition

DEFINITIONS_OF_DIVERSITY: dict[str, Definition] = {
    "inception_score": Definition(
        "Inception score under the corpus's classifier",
        "classes",
        "higher",
        "High when each example is clearly of one class and all classes are equally many; from 1 to the number of "
        "classes. The classifier is a small one of this very corpus, so no published figure compares. It does not see "
        "whether a model draws the same few examples of each class again and again.",
        fewest=20,
        enough=1000,
    ),
    "inception_score_ceiling": Definition(
        "Inception score of real examples",
        "classes",
        None,
        "The same score of as many held-out examples: what a perfect model would score.",
        fewest=20,
        enough=1000,
    ),
    "vendi_score": Definition(
        "Vendi score",
        "effective examples",
        None,
        "How many entirely different examples would be as varied as these, by the angles between their features. Below "
        "that of real examples the model has lost variety; above it, it is scattered.",
        fewest=20,
        enough=500,
    ),
    "vendi_score_ceiling": Definition(
        "Vendi score of real examples",
        "effective examples",
        None,
        "The same score of as many held-out examples: what a perfect model would score.",
        fewest=20,
        enough=500,
    ),
}


def inception_score(logits: Tensor) -> Estimate:
    """exp of the mean KL divergence of p(y|x) from p(y), of class logits `[N, K]`; higher is better, in [1, K].

    Salimans et al. (2016), section 4, over all examples at once rather than the mean of ten splits, which is biased
    more. The interval is a jackknife over ten blocks.
    """
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    negative_entropy = (p * log_p).sum(1)

    def value(rows: Tensor) -> float:
        marginal = p[rows].mean(0)
        entropy = -torch.special.xlogy(marginal, marginal).sum()
        return math.exp(float(negative_entropy[rows].mean() + entropy))

    return within(_over_blocks(len(logits), value), 1.0, float(logits.shape[1]))


def vendi_score(features: Tensor) -> Estimate:
    """exp of the entropy of the eigenvalues of K / N, K the cosines between features `[N, D]`; in [1, min(N, D)].

    Friedman and Dieng (2023), definition 3.1; the eigenvalues are those of X^T X / N of the normalised features
    (their section 3.3). The interval is a jackknife over ten blocks.
    """
    x = features.double()
    x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)
    own = block_numbers(len(x))
    outers = torch.stack([x[own == b].T @ x[own == b] for b in range(int(own.max()) + 1)])  # [blocks, D, D]
    whole = outers.sum(0)

    def value(outer: Tensor, count: int) -> float:
        shares = torch.linalg.eigvalsh(outer / count).clamp(min=0)
        return math.exp(-float(torch.special.xlogy(shares, shares).sum()))

    left_out = [value(whole - outer, len(x) - int((own == b).sum())) for b, outer in enumerate(outers)]
    return within(jackknife(value(whole, len(x)), left_out), 1.0, float(min(x.shape)))


def _over_blocks(count: int, value: Callable[[Tensor], float]) -> Estimate:
    """The value of all rows with its jackknife; `value` takes a mask of rows, bool `[count]`."""
    own = block_numbers(count)
    return jackknife(value(own >= 0), [value(own != b) for b in range(int(own.max()) + 1)])
