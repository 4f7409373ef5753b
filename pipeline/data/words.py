"""The text codec of whole words, parted by whitespace: for corpora of short, tokenised sentences.

Plain Python and NumPy; counted and applied by Ray Data's workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from pipeline.data.text import UNKNOWN, OpenCodec
from pipeline.errors import CodecError
from pipeline.spec import WordsCodecSpec


class WordsCodec(OpenCodec):
    """The words of the training texts, the commonest first, and one symbol for all others; texts of known words come
    back with one space between words."""

    def __init__(self, spec: WordsCodecSpec) -> None:
        super().__init__(spec)
        self.min_count = spec.min_count
        self._set_words([])

    def _set_words(self, words: list[str]) -> None:
        self.words = words
        self._identifiers = {word: i for i, word in enumerate(words)}

    @property
    def num_symbols(self) -> int:
        return len(self.words) + 1

    def fit(self, raws: Iterable[str]) -> None:
        """Raises: CodecError when no word is seen `min_count` times."""
        self.fit_counts(self.count(raws))

    def count(self, raws: Iterable[str]) -> Counter[str]:
        """How often each word is in texts, special tokens left out. Counts of parts add up to that of the whole, so
        that parts may be counted in parallel."""
        counts: Counter[str] = Counter()
        for text in self.between_specials(raws):
            counts.update(text.split())
        return counts

    def fit_counts(self, counts: Counter[str]) -> None:
        """Take the words that `counts` has `min_count` times. Raises: CodecError when there is none."""
        known = [(word, count) for word, count in counts.items() if count >= self.min_count]
        if not known:
            raise CodecError(
                f"no word of the training texts is seen {self.min_count} times; lower data.codec.min_count"
            )
        self._set_words([word for word, _ in sorted(known, key=lambda item: (-item[1], item[0]))])

    def symbols(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        find, unknown = self._identifiers.get, self.unknown
        found = [[find(word, unknown) for word in text.split()] for text in texts]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        return np.fromiter(chain.from_iterable(found), np.int64, int(lengths.sum())), lengths

    def text_of(self, symbols: np.ndarray) -> str:
        return " ".join([self.words[i] if i < self.unknown else UNKNOWN for i in symbols.tolist()])

    def symbol_meanings(self) -> Sequence[Hashable]:
        return [*(word.encode("utf-8", errors="surrogatepass") for word in self.words), "unknown"]

    def state(self) -> dict[str, Any]:
        return {**super().state(), "words": self.words}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._set_words(state["words"])
