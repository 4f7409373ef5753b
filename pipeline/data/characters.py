"""The text codecs of the smallest symbols: UTF-8 bytes, or Unicode characters.

Plain Python and NumPy; characters are counted and applied by Ray Data's workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from pipeline.data.text import UNKNOWN, OpenCodec, TextCodec
from pipeline.errors import CodecError
from pipeline.spec import BytesCodecSpec, CharactersCodecSpec

CHARACTERS_COUNTED_AT_ONCE = 2**20


class BytesCodec(TextCodec):
    """UTF-8 bytes: nothing to fit, nothing unknown; every text comes back exactly.

    245 symbols, since UTF-8 has no byte from 0xF5 on (RFC 3629, section 4): with the tokens of the packing and up to
    eight special ones, an identifier is stored in one byte.
    """

    needs_fit: ClassVar[bool] = False
    num_symbols = 0xF5

    def __init__(self, spec: BytesCodecSpec) -> None:
        super().__init__(spec)

    def fit(self, raws: Iterable[str]) -> None:
        """Bytes have nothing to learn."""

    def symbol_meanings(self) -> Sequence[Hashable]:
        return [bytes([value]) for value in range(self.num_symbols)]

    def symbols(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [text.encode("utf-8") for text in texts]
        return np.frombuffer(b"".join(encoded), np.uint8), np.fromiter(map(len, encoded), np.int64, len(encoded))

    def text_of(self, symbols: np.ndarray) -> str:
        return symbols.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class CharactersCodec(OpenCodec):
    """The Unicode characters of the training texts, sorted, and one symbol for all others; texts of known characters
    come back exactly."""

    def __init__(self, spec: CharactersCodecSpec) -> None:
        super().__init__(spec)
        self.min_count = spec.min_count
        self.characters = ""

    @property
    def num_symbols(self) -> int:
        return len(self.characters) + 1

    @cached_property
    def _identifiers(self) -> np.ndarray:
        """The identifier of every code point, int32 `[highest known + 2]`; the last stands for all higher ones."""
        points = _code_points(self.characters)
        table = np.full(int(points.max(initial=0)) + 2, self.unknown, np.int32)
        table[points] = np.arange(len(points))
        return table

    def fit(self, raws: Iterable[str]) -> None:
        """Raises: CodecError when no character is seen `min_count` times."""
        self.fit_counts(self.count(raws))

    def count(self, raws: Iterable[str]) -> Counter[str]:
        """How often each character is in texts, special tokens left out. Counts of parts add up to that of the whole,
        so that parts may be counted in parallel."""
        counts: Counter[str] = Counter()
        for texts in _chunks(self.between_specials(raws)):
            found = np.bincount(_code_points(texts))
            counts.update({chr(point): int(found[point]) for point in np.flatnonzero(found)})
        return counts

    def fit_counts(self, counts: Counter[str]) -> None:
        """Take the characters that `counts` has `min_count` times. Raises: CodecError when there is none."""
        self._set_characters("".join(sorted(c for c, count in counts.items() if count >= self.min_count)))
        if not self.characters:
            raise CodecError(
                f"no character of the training texts is seen {self.min_count} times; lower data.codec.min_count"
            )

    def _set_characters(self, characters: str) -> None:
        self.characters = characters
        self.__dict__.pop("_identifiers", None)

    def symbols(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        table = self._identifiers
        identifiers: np.ndarray = table[np.minimum(_code_points("".join(texts)), len(table) - 1)]
        return identifiers, np.fromiter(map(len, texts), np.int64, len(texts))

    def text_of(self, symbols: np.ndarray) -> str:
        alphabet = self.characters + UNKNOWN
        return "".join([alphabet[i] for i in symbols.tolist()])

    def symbol_meanings(self) -> Sequence[Hashable]:
        return [*(character.encode("utf-8", errors="surrogatepass") for character in self.characters), "unknown"]

    def state(self) -> dict[str, Any]:
        return {**super().state(), "characters": self.characters}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._set_characters(state["characters"])


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    """`texts` joined to strings of about `CHARACTERS_COUNTED_AT_ONCE`."""
    waiting: list[str] = []
    size = 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= CHARACTERS_COUNTED_AT_ONCE:
            yield "".join(waiting)
            waiting, size = [], 0
    yield "".join(waiting)
