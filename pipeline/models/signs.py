"""Signs of health of a generator and its critic: how varied examples are, and how well scores tell them apart.

Plain PyTorch, pure functions of batches; `GenerativeModel.vital_signs` gives them, `training/health.py` judges them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def distances(x: Tensor) -> Tensor:
    """Between all pairs of examples, `[N, N]`: Euclidean for signals `[N, C, *space]`, the share of places that differ
    for tokens `[N, T]`."""
    if not x.is_floating_point():
        return (x.unsqueeze(0) != x.unsqueeze(1)).sum(2).double() / x.shape[1]
    flat = x.flatten(1)
    # By products of matrices the distance between two equal examples would not be zero.
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")


def variety(x: Tensor) -> tuple[Tensor, Tensor]:
    """How varied a batch is: the mean distance of its pairs, and the median distance of an example to the nearest
    other. One example over and over gives zero in both, a handful of examples in the second."""
    between = distances(x)
    count = len(between)
    itself = torch.eye(count, dtype=torch.bool, device=between.device)
    nearest = between.masked_fill(itself, torch.inf).min(1).values
    return between.sum() / max(1, count * (count - 1)), nearest.median()


def win_share(real: Tensor, fake: Tensor) -> Tensor:
    """The share of pairs of a real and a generated example in which the critic scores the real one higher, of scores
    `[N]` and `[M]`; ties count half (the Mann-Whitney statistic). 1: it tells all apart; 1/2: none."""
    differences = real.unsqueeze(1) - fake.unsqueeze(0)
    return ((differences > 0).double() + 0.5 * (differences == 0)).mean()


def overfit_share(seen: Tensor, held_out: Tensor, fake: Tensor) -> Tensor:
    """(E[D(train)] - E[D(held out)]) / (E[D(train)] - E[D(generated)]) (Karras et al. 2020, "Training GANs with limited
    data", eq. 1): near 0 the critic treats unseen examples as those it was trained on, at 1 as generated ones. 0 where
    the numerator is within three standard errors of none."""
    lead = seen.mean() - held_out.mean()
    error = (seen.var() / len(seen) + held_out.var() / len(held_out)).sqrt()
    gap = seen.mean() - fake.mean()
    return lead / gap if gap > 0 and lead > 3 * error else torch.zeros_like(gap)
