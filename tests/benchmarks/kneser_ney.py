"""An interpolated Kneser-Ney n-gram model over documents of tokens, the baseline of the language models.

NumPy, in one process. Kneser and Ney 1995, interpolated as in Chen and Goodman 1999, one discount an order, n1 / (n1 +
2 n2). Every document follows `order - 1` end tokens and is followed by one, which is predicted like any
other token; counts of n-grams that begin with such a start are plain ones, since nothing else stands before them. The
lowest order is the uniform distribution over the symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Order:
    """The counts of one order: sorted contexts, and the sorted pairs of a context's place and a token."""

    contexts: np.ndarray
    totals: np.ndarray
    followers: np.ndarray
    pairs: np.ndarray
    counts: np.ndarray
    discount: float


class KneserNey:
    """`symbols` tokens, of which `end` begins and ends documents; fitted on integer arrays `[any]` without it."""

    def __init__(self, documents: Sequence[np.ndarray], symbols: int, end: int, order: int = 5) -> None:
        self.symbols, self.end, self.order = symbols, end, order
        if symbols ** (order - 1) >= 2**63:
            raise ValueError(f"{symbols} symbols: contexts of {order - 1} do not fit into 63 bits; lower the order")
        history, targets = self._positions(documents)
        # Distinct n-grams of the highest order and their counts; each shorter one is counted from the next longer.
        grams = np.column_stack([history, targets])
        grams, counts = self._distinct(grams, np.ones(len(grams), dtype=np.int64))
        self.orders: list[_Order] = []
        for length in range(order - 1, -1, -1):
            self.orders.append(self._counted(grams, counts))
            if length:
                starts = grams[:, 1] == end if length > 1 else np.zeros(len(grams), dtype=bool)
                grams, counts = self._distinct(grams[:, 1:], np.where(starts, counts, 1))
        self.orders.reverse()

    def _positions(self, documents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The `order - 1` tokens before each target, oldest first, `[M, order - 1]`, and the targets `[M]`."""
        start = np.full(self.order - 1, self.end)
        padded = [np.concatenate([start, document, [self.end]]) for document in documents]
        windows = [np.lib.stride_tricks.sliding_window_view(part, self.order) for part in padded]
        every = np.concatenate(windows).astype(np.int64)
        return every[:, :-1], every[:, -1]

    def _key(self, context: np.ndarray) -> np.ndarray:
        """One number for each row of `context` `[M, k]`."""
        key = np.zeros(len(context), dtype=np.int64)
        for column in context.T:
            key = key * self.symbols + column
        return key

    def _distinct(self, grams: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The different rows of `grams` `[M, k]`, each with the sum of its `counts`."""
        _, place = np.unique(self._key(grams[:, :-1]), return_inverse=True)
        _, first, place = np.unique(place * self.symbols + grams[:, -1], return_index=True, return_inverse=True)
        return grams[first], np.bincount(place, weights=counts).astype(np.int64)

    def _counted(self, grams: np.ndarray, counts: np.ndarray) -> _Order:
        contexts, place = np.unique(self._key(grams[:, :-1]), return_inverse=True)
        pairs = place * self.symbols + grams[:, -1]
        order = np.argsort(pairs)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = float(once / (once + 2 * twice)) if once else 0.5
        totals = np.bincount(place, weights=counts)
        return _Order(contexts, totals, np.bincount(place), pairs[order], counts[order], discount)

    def probabilities(self, history: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """p(target | history) of each row, `[M]`; `history` `[M, order - 1]` is what stands before, oldest first."""
        result = np.full(len(targets), 1 / self.symbols)
        for length, order in enumerate(self.orders):
            place, known = _find(order.contexts, self._key(history[:, history.shape[1] - length :]))
            pair, seen = _find(order.pairs, place * self.symbols + targets)
            counts = np.where(seen & known, order.counts[pair], 0)
            total = order.totals[place]
            kept = np.maximum(counts - order.discount, 0) / total
            left = order.discount * order.followers[place] / total
            result = np.where(known, kept + left * result, result)
        return result

    def nats(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """The surprise at every token of `documents`, and at the end of each, in nats, one after the other."""
        values: np.ndarray = -np.log(self.probabilities(*self._positions(documents)))
        return values


def _find(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of `wanted` in `ordered`, and whether they are there."""
    place = np.searchsorted(ordered, wanted).clip(max=len(ordered) - 1)
    return place, ordered[place] == wanted
