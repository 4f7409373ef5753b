"""BLEU of generated texts against held-out ones, and of texts against each other: quality and (lost) diversity.

NumPy, on the driver. Of each order all n-grams of all texts are counted at once, so that a thousand texts with a
thousand references each take a second and not an hour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.tokens import Tokens, gram_ids

SMOOTHING = 0.1
"""Matches of an order that has none (Chen and Cherry 2014, technique 1), as Texygen takes it from NLTK."""


@dataclass(frozen=True)
class _Counts:
    """How often a text has an n-gram, one row a pair that occurs: int64 `[pairs]` each."""

    text: np.ndarray
    gram: np.ndarray
    count: np.ndarray

    def of(self, texts: np.ndarray) -> _Counts:
        kept = texts[self.text]
        return _Counts(self.text[kept], self.gram[kept], self.count[kept])


class Bleu:
    """Sentence BLEU of order `order`, in [0, 1], of each of several texts against many references.

    Uniform weights, clipped counts over all references, the brevity penalty with the closest reference's length, and
    0.1 matches where an order has none. Source: Papineni et al. (2002), section 2.3; self-BLEU: Zhu et al. (2018),
    section 3.2.
    """

    def __init__(self, hypotheses: Tokens, references: Tokens | None, order: int) -> None:
        """Without `references` each text is measured against all others."""
        self.own = references is None
        self.hypotheses = hypotheses
        self.references = hypotheses if references is None else references
        both = hypotheses if references is None else hypotheses.followed_by(references)
        first = 0 if references is None else len(hypotheses)
        self.tables: list[tuple[_Counts, _Counts, int]] = []
        for ids in gram_ids(both, order):
            counts = _count(both.text, ids)
            ours, theirs = counts.text < len(hypotheses), counts.text >= first
            hypothesis = _Counts(counts.text[ours], counts.gram[ours], counts.count[ours])
            reference = _Counts(counts.text[theirs] - first, counts.gram[theirs], counts.count[theirs])
            # Each n-gram's references together, the one that has it most often first: `of` keeps the order.
            by_gram = np.lexsort((-reference.count, reference.gram))
            reference = _Counts(reference.text[by_gram], reference.gram[by_gram], reference.count[by_gram])
            self.tables.append((hypothesis, reference, int(ids.max(initial=0)) + 1))

    def scores(self, among: np.ndarray | None = None) -> np.ndarray:
        """Of each hypothesis, float64 `[N]`. `among`, bool over the references, leaves some of them out."""
        chosen = np.ones(len(self.references), bool) if among is None else among
        count = len(self.hypotheses)
        logarithm, nothing = np.zeros(count), np.zeros(count, bool)
        for n, (hypothesis, reference, num_grams) in enumerate(self.tables, start=1):
            available = self._available(hypothesis, reference.of(chosen), num_grams)
            clipped = np.minimum(hypothesis.count, available)
            matches = np.bincount(hypothesis.text, weights=clipped, minlength=count)
            total = np.maximum(1, self.hypotheses.lengths - n + 1)
            if n == 1:
                nothing = matches == 0
            logarithm += np.log(np.where(matches == 0, SMOOTHING, matches) / total)
        lengths = self.hypotheses.lengths.astype(np.float64)
        nearest = self._nearest_lengths(chosen)
        penalty = np.where(lengths > nearest, 1.0, np.exp(1 - nearest / np.maximum(lengths, 1)))
        return np.where(nothing, 0.0, penalty * np.exp(logarithm / len(self.tables)))

    def _available(self, hypothesis: _Counts, reference: _Counts, num_grams: int) -> np.ndarray:
        """Of each pair of the hypotheses, the most that one reference (not the text itself) has of its n-gram."""
        gram, count, text = reference.gram, reference.count, reference.text
        head = np.ones(len(gram), bool)
        head[1:] = gram[1:] != gram[:-1]
        places = np.flatnonzero(head)
        most, owner, next_most = np.zeros(num_grams, np.int64), np.full(num_grams, -1), np.zeros(num_grams, np.int64)
        most[gram[places]], owner[gram[places]] = count[places], text[places]
        if not self.own:
            return most[hypothesis.gram]
        seconds = places + 1
        seconds = seconds[seconds < len(gram)]
        seconds = seconds[~head[seconds]]
        next_most[gram[seconds]] = count[seconds]
        mine = owner[hypothesis.gram] == hypothesis.text
        return np.where(mine, next_most[hypothesis.gram], most[hypothesis.gram])

    def _nearest_lengths(self, chosen: np.ndarray) -> np.ndarray:
        """The length of each hypothesis's closest reference, the shorter of two as close; float64 `[N]`."""
        counts = np.bincount(self.references.lengths[chosen])
        nearest = np.zeros(len(self.hypotheses))
        for length in np.unique(self.hypotheses.lengths):
            here = np.flatnonzero(self.hypotheses.lengths == length)
            nearest[here] = _nearest(counts, int(length))
            if self.own and length < len(counts) and counts[length] == 1:
                others = counts.copy()
                others[length] = 0
                only = here[chosen[here]]
                nearest[only] = _nearest(others, int(length))
        return nearest


def _nearest(counts: np.ndarray, length: int) -> int:
    lengths = np.flatnonzero(counts)
    return int(lengths[np.argmin(np.abs(lengths - length))]) if len(lengths) else 0


def _count(text: np.ndarray, ids: np.ndarray) -> _Counts:
    kept = ids >= 0
    width = int(ids.max(initial=0)) + 1
    keys, counts = np.unique(text[kept] * width + ids[kept], return_counts=True)
    return _Counts(keys // width, keys % width, counts)
