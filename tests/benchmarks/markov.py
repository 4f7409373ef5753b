"""What a text GAN is measured beside: Markov samplers of characters, and the divergence of n-grams.

Pure functions of texts.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

END = "\n"
"""Stands before and after every text, so that how texts begin and where they end is part of what is compared."""


class MarkovSampler:
    """Texts whose characters are drawn by the `order - 1` before them, as often as `texts` have it: order 2 knows pairs
    of neighbours. No smoothing."""

    def __init__(self, texts: Iterable[str], order: int) -> None:
        self.context = order - 1
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            padded = END * self.context + text + END
            for place in range(self.context, len(padded)):
                counts[padded[place - self.context : place]][padded[place]] += 1
        self.choices = {
            context: ("".join(found), np.cumsum(list(found.values())) / sum(found.values()))
            for context, found in counts.items()
        }

    def draw(self, generator: np.random.Generator, longest: int) -> str:
        """One text of at most `longest` characters."""
        text = END * self.context
        while len(text) < longest + self.context:
            characters, ends = self.choices[text[len(text) - self.context :]]
            character = characters[int(np.searchsorted(ends, generator.random(), side="right"))]
            if character == END:
                break
            text += character
        return text[self.context :]


def divergence(texts: Iterable[str], others: Iterable[str], length: int = 4) -> float:
    """The Jensen-Shannon divergence in bits, in [0, 1], of how often the n-grams of `length` characters occur in two
    lists of texts, those that begin and end a text included; lower is nearer. As in Gulrajani et al. (2017, section
    5.4), in bits rather than nats."""
    left, right = _shares(texts, length), _shares(others, length)
    total = 0.0
    for gram in left.keys() | right.keys():
        p, q = left.get(gram, 0.0), right.get(gram, 0.0)
        middle = (p + q) / 2
        total += sum(share / 2 * math.log2(share / middle) for share in (p, q) if share > 0)
    return total


def _shares(texts: Iterable[str], length: int) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for text in texts:
        whole = END + text + END
        counts.update(whole[place : place + length] for place in range(len(whole) - length + 1))
    total = sum(counts.values())
    return {gram: count / total for gram, count in counts.items()}


def cut_to(texts: Sequence[str], characters: int) -> list[str]:
    """The first texts that have at most `characters` together."""
    ends = np.cumsum([len(text) for text in texts])
    return list(texts[: int(np.searchsorted(ends, characters, side="right"))])
