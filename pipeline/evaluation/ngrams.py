"""How varied texts are, how often they repeat themselves, and how their n-grams are distributed.

NumPy, on the driver; pure functions of texts as `Tokens`. Where a statistic grows or shrinks with the amount of text,
it says so: compare it only between sets of the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from pipeline.evaluation.metric import Interval, with_intervals
from pipeline.evaluation.tokens import Tokens, gram_ids

BLOCKS = 10
"""Blocks of texts that the intervals are taken over."""


def over_blocks(
    counts: Sequence[int], statistics: Callable[..., dict[str, float]]
) -> dict[str, tuple[float, Interval | None]]:
    """Statistics of chosen texts of one or several sets of `counts` texts, given as a mask bool `[count]` a set, with
    95% intervals by leaving out each of ten blocks of consecutive texts (`metric.with_intervals`)."""
    numbers = [np.arange(count) * BLOCKS // max(BLOCKS, count) for count in counts]
    blocks = [
        {str(place): torch.from_numpy((number == block).astype(np.float64)) for place, number in enumerate(numbers)}
        for block in range(min(BLOCKS, *counts, BLOCKS))
    ]
    return with_intervals(
        blocks, lambda sums: statistics(*(sums[str(place)].numpy() > 0 for place in range(len(counts))))
    )


def distinct(tokens: Tokens, n: int, chosen: np.ndarray | None = None) -> float:
    """Different n-grams over tokens, of the texts `chosen` bool `[N]`; between 0 and 1, higher is more varied.

    Shrinks as the text grows. Source: Li et al. (2016), section 5.2, distinct-1 and distinct-2.
    """
    kept = _kept(tokens, chosen)
    grams = gram_ids(tokens, n)[-1][kept]
    return len(np.unique(grams[grams >= 0])) / max(1, len(grams))


def repetition(tokens: Tokens, n: int) -> np.ndarray:
    """Of each text the share of its n-grams that repeat an earlier one of it, float64 `[N]`; NaN for a text too short
    to have one. Lower repeats less. Source: Welleck et al. (2020), eq. 11, seq-rep-n."""
    grams = gram_ids(tokens, n)[-1]
    pairs = np.stack([tokens.text, grams])[:, grams >= 0]
    unique = np.unique(pairs, axis=1)
    grams_of = np.bincount(pairs[0], minlength=len(tokens)).astype(np.float64)
    different = np.bincount(unique[0], minlength=len(tokens))
    return 1 - np.divide(different, grams_of, out=np.full(len(tokens), np.nan), where=grams_of > 0)


def divergence(ours: Tokens, theirs: Tokens, longest: int) -> Callable[[np.ndarray, np.ndarray], list[float]]:
    """The Jensen-Shannon divergence of the n-gram distributions of two sets for n = 1 to `longest`, as a function of
    the texts chosen of each, bool `[N]`; in bits, from 0 (alike) to 1 (nothing in common).

    Shrinks as the text grows, and is above 0 for two halves of one corpus. Source: Lin (1991), eq. 4.1.
    """
    both = ours.followed_by(theirs)
    grams = gram_ids(both, longest)

    def bits(our_choice: np.ndarray, their_choice: np.ndarray) -> list[float]:
        nobody = np.zeros(len(ours), bool), np.zeros(len(theirs), bool)
        kept = (
            np.concatenate([our_choice, nobody[1]])[both.text],
            np.concatenate([nobody[0], their_choice])[both.text],
        )
        return [_jensen_shannon(*(ids[chosen & (ids >= 0)] for chosen in kept)) for ids in grams]

    return bits


def _jensen_shannon(ours: np.ndarray, theirs: np.ndarray) -> float:
    size = int(max(ours.max(initial=0), theirs.max(initial=0))) + 1
    p, q = (np.bincount(ids, minlength=size) / max(1, len(ids)) for ids in (ours, theirs))
    middle = (p + q) / 2
    return float(sum(0.5 * (x[x > 0] * np.log2(x[x > 0] / middle[x > 0])).sum() for x in (p, q)))


def _kept(tokens: Tokens, chosen: np.ndarray | None) -> np.ndarray:
    """Which tokens are of the chosen texts, bool `[total]`."""
    return np.ones(len(tokens.ids), bool) if chosen is None else chosen[tokens.text]
