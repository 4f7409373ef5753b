"""Texts as numbers: what a token is, and an identifier for every n-gram of several texts.

NumPy, on the driver. Every statistic of texts reads these arrays; none keeps a text twice.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Unit = Literal["words", "characters"]

UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao; Tibetan; Myanmar; Khmer
    "\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""The scripts that put no space between words, as the inside of a character class."""
UNSPACED_CHARACTER = re.compile(f"[{UNSPACED}]")
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+(?:['’][^\W{UNSPACED}]+)*|[^\w\s]")
FEWEST_WORDS = 4
"""Texts of fewer words than this (names) are read as characters."""


def mostly_unspaced(texts: Sequence[str]) -> bool:
    """Whether most letters of texts are of a script without spaces between words."""
    letters = unspaced = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        unspaced += len(UNSPACED_CHARACTER.findall(text))
    return 2 * unspaced > letters


def unit_of(texts: Sequence[str]) -> Unit:
    """What the tokens of a corpus are, from some of its texts: "characters" where most letters are of a script without
    spaces between words, or where the median text has fewer than four words; else "words"."""
    few = statistics.median([len(WORD.findall(text)) for text in texts] or [0]) < FEWEST_WORDS
    return "characters" if few or mostly_unspaced(texts) else "words"


def tokenise(text: str, unit: Unit) -> list[str]:
    """Words: runs of letters, digits and apostrophes between them, each other mark alone, each character of a script
    without spaces alone, case kept. Characters: every one, runs of white space as one space."""
    return WORD.findall(text) if unit == "words" else list(re.sub(r"\s+", " ", text))


@dataclass(frozen=True)
class Tokens:
    """Several texts one after the other: `ids` int64 `[total]`, `text` int64 `[total]` (which text each token is of),
    `lengths` int64 `[N]`. Equal tokens have equal identifiers in all that one `number` call gave."""

    ids: np.ndarray
    text: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, lengths: np.ndarray) -> Tokens:
        return cls(ids, np.repeat(np.arange(len(lengths)), lengths), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def first(self, budget: int) -> Tokens:
        """No more than the first `budget` tokens; the last text may be cut, and those after it are gone."""
        ends = np.cumsum(self.lengths)
        kept = int(np.searchsorted(ends, budget)) + 1
        lengths = self.lengths[:kept].copy()
        if kept <= len(self.lengths):
            lengths[-1] -= max(0, int(ends[kept - 1]) - budget)
        return Tokens.of(self.ids[:budget], lengths)

    def followed_by(self, other: Tokens) -> Tokens:
        """Both, as one."""
        return Tokens.of(np.concatenate([self.ids, other.ids]), np.concatenate([self.lengths, other.lengths]))


def number(sets: Sequence[Sequence[str]], unit: Unit) -> list[Tokens]:
    """Each set of texts as tokens, numbered alike."""
    numbers: dict[str, int] = {}
    result: list[Tokens] = []
    for texts in sets:
        split = [tokenise(text, unit) for text in texts]
        ids = [numbers.setdefault(token, len(numbers)) for tokens in split for token in tokens]
        result.append(Tokens.of(np.array(ids, np.int64), np.array([len(tokens) for tokens in split], np.int64)))
    return result


def gram_ids(tokens: Tokens, longest: int) -> list[np.ndarray]:
    """For n = 1 to `longest` the identifier of the n-gram that starts at each token, int64 `[total]`; -1 where it would
    run past its text's end. Equal n-grams, and only those, have equal identifiers."""
    total = len(tokens.ids)
    grams = [tokens.ids.copy()]
    for n in range(2, longest + 1):
        whole = np.zeros(total, bool)
        if total >= n:
            whole[: total - n + 1] = tokens.text[: total - n + 1] == tokens.text[n - 1 :]
        starts = np.flatnonzero(whole)
        ids = np.full(total, -1, np.int64)
        pairs = grams[-1][starts] * (int(tokens.ids.max(initial=0)) + 1) + tokens.ids[starts + n - 1]
        ids[starts] = np.unique(pairs, return_inverse=True)[1]
        grams.append(ids)
    return grams
