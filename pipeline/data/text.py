"""What all text codecs share: special tokens, packing and the way back.

Plain Python and NumPy; fitted by the driver on the training texts, applied by Ray Data's workers. Identifiers are
the symbols first, then the spec's special tokens, then begin, end and padding, so that a symbol's identifier never
depends on the packing.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from pipeline.data.decoded import MAX_BYTES, Decoded, check_size
from pipeline.data.layout import Layout, Modality
from pipeline.errors import CodecError
from pipeline.spec import TextCodecSpec

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class TextCodec(ABC):
    """What the text codecs share: special tokens, packing, and the way back.

    A special token is one identifier wherever its string occurs in a text (of several at one place, the longest),
    whatever the symbols are. In `windows` a document is its tokens and an end token; a corpus of one document has
    no end token (`separate_documents` is False), so that nats per character are exact. In `documents` it is begin,
    tokens, end and padding; one that is cut has no end token.
    """

    modality: ClassVar[Modality] = "text"
    extension: ClassVar[str] = ".txt"
    needs_fit: ClassVar[bool] = True

    def __init__(self, spec: TextCodecSpec) -> None:
        self.spec = spec
        self.separate_documents = True
        # The longest first: an alternation takes the first that fits.
        longest_first = sorted(spec.special_tokens, key=len, reverse=True)
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    @property
    @abstractmethod
    def num_symbols(self) -> int:
        """Identifiers below this are symbols."""

    @abstractmethod
    def symbols(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The identifiers of all `texts`, one after the other, integers `[any]`, and how many each has, int64 `[N]`.
        Special tokens are not looked for."""

    @abstractmethod
    def text_of(self, symbols: np.ndarray) -> str:
        """The text of symbol identifiers `[any]`."""

    @abstractmethod
    def fit(self, raws: Iterable[str]) -> None:
        """Learn the symbols from training texts, which are read once and not kept."""

    @abstractmethod
    def symbol_meanings(self) -> Sequence[Hashable]:
        """What each symbol stands for, by its identifier: its UTF-8 bytes, where it stands for a text."""

    def meanings(self) -> tuple[Hashable, ...]:
        """The bytes of each symbol, then the special tokens and those of the packing by their names."""
        specials = [("special", token) for token in self.spec.special_tokens]
        return (*self.symbol_meanings(), *specials, *(("packing", name) for name in self.packing_identifiers))

    def count_unknown(self, raw: str) -> int:
        return 0

    # --- special tokens -------------------------------------------------------------------------------------------

    @property
    def special_identifiers(self) -> dict[str, int]:
        """The identifiers of the spec's special tokens, in its order."""
        return {token: self.num_symbols + i for i, token in enumerate(self.spec.special_tokens)}

    @property
    def packing_identifiers(self) -> dict[str, int]:
        """The identifiers of `begin`, `end` and `pad`, as far as the packing has them."""
        names = ["begin", "end", "pad"] if self.spec.packing == "documents" else ["end"] * self.separate_documents
        first = self.num_symbols + len(self.spec.special_tokens)
        return {name: first + i for i, name in enumerate(names)}

    @property
    def vocabulary(self) -> int:
        return self.num_symbols + len(self.spec.special_tokens) + len(self.packing_identifiers)

    def between_specials(self, raws: Iterable[str]) -> Iterator[str]:
        """The parts of texts that are no special tokens: what there is to learn symbols from."""
        if self._special_pattern is None:
            return iter(raws)
        return (part for raw in raws for part in self._special_pattern.split(raw)[::2] if part)

    # --- there ----------------------------------------------------------------------------------------------------

    def open(self, payload: str | bytes, rate: int | None = None, max_bytes: int = MAX_BYTES) -> Decoded:
        """A text, or a file's UTF-8 (with or without a byte-order mark), as a string.

        Raises: CodecError when it is larger than `max_bytes`, or a file is not UTF-8.
        """
        if isinstance(payload, str):
            if 4 * len(payload) > max_bytes:  # as UTF-8 it may be too large
                check_size(len(payload.encode("utf-8", errors="surrogatepass")), max_bytes, "the text")
            return Decoded(payload)
        check_size(len(payload), max_bytes, "the text")
        try:
            return Decoded(bytes(payload).decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise CodecError(f"not UTF-8 text: byte 0x{payload[error.start]:02x} at {error.start}") from None

    def shape(self, raw: str, key: str = "") -> list[str]:
        """The text itself. Raises: CodecError when it has half a surrogate pair in it, which no UTF-8 can hold."""
        try:
            raw.encode("utf-8")
        except UnicodeEncodeError as error:
            raise CodecError(
                f"the text has half a surrogate pair, U+{ord(raw[error.start]):04X}, at {error.start}; "
                "data.cleaning.text.remove_control takes such characters out"
            ) from None
        return [raw]

    def decode_payload(self, payload: str | bytes, rate: int | None = None) -> str:
        """Raises: CodecError when a file is not UTF-8."""
        return self.shape(self.open(payload, rate).raw)[0]

    def encode(self, raw: str) -> np.ndarray:
        """Identifiers of one document: `[length]` in documents, `[any]` in windows."""
        return self.encode_batch([raw])[0]

    def tokens(self, text: str) -> np.ndarray:
        """Identifiers of a text alone, integers `[any]`: its special tokens in their places, nothing around it."""
        parts = [text] if self._special_pattern is None else self._special_pattern.split(text)
        symbols, lengths = self.symbols(parts[::2])
        specials = [self.special_identifiers[token] for token in parts[1::2]]
        return np.insert(symbols.astype(np.int64), np.cumsum(lengths)[:-1], specials)

    def encode_batch(self, raws: Sequence[str]) -> list[np.ndarray]:
        """What `encode` gives of each text, in a fraction of the time."""
        if not raws:
            return []
        pieces, followers, num_pieces = self._pieces(raws)
        symbols, lengths = self.symbols(pieces)
        follows = followers >= 0
        # Each follower stands behind its piece; np.insert keeps the order of several at one place.
        tokens = np.insert(symbols.astype(self._stored_dtype), np.cumsum(lengths)[follows], followers[follows])
        firsts = np.cumsum(num_pieces) - num_pieces
        sizes = np.add.reduceat(lengths + follows, firsts)
        ends = np.cumsum(sizes)
        if self.spec.packing == "windows":
            return [tokens[start:end] for start, end in zip(ends - sizes, ends, strict=True)]
        return list(self._padded(tokens, ends - sizes, sizes))

    def _pieces(self, raws: Sequence[str]) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
        """Texts cut at their special tokens: pieces, the identifier that follows each (or -1), and how many pieces
        each text has."""
        end = self.packing_identifiers["end"] if self.spec.packing == "windows" and self.separate_documents else -1
        if self._special_pattern is None:
            return raws, np.full(len(raws), end), np.ones(len(raws), np.int64)
        identifiers = self.special_identifiers
        pieces: list[str] = []
        followers: list[int] = []
        num_pieces: list[int] = []
        for raw in raws:
            parts = self._special_pattern.split(raw)
            pieces += parts[::2]
            followers += [*(identifiers[token] for token in parts[1::2]), end]
            num_pieces.append(len(parts) // 2 + 1)
        return pieces, np.array(followers), np.array(num_pieces)

    def _padded(self, tokens: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Documents `[N, length]` of `sizes` tokens each, beginning at `starts`: begin, tokens, end, padding."""
        identifiers, length = self.packing_identifiers, self.spec.length
        examples = np.full((len(sizes), length), identifiers["pad"], tokens.dtype)
        examples[:, 0] = identifiers["begin"]
        kept = np.minimum(sizes, length - 1)
        within = np.arange(length - 1) < kept[:, None]
        places = starts[:, None] + np.arange(length - 1)
        examples[:, 1:][within] = tokens[places[within]]
        whole = np.flatnonzero(sizes < length - 1)
        examples[whole, sizes[whole] + 1] = identifiers["end"]
        return examples

    # --- and back -------------------------------------------------------------------------------------------------

    def decode(self, example: np.ndarray) -> str:
        """Text of integers `[T]`: a document up to its end token; in windows, documents parted by a line's end."""
        tokens = np.asarray(example).astype(np.int64).reshape(-1)
        end = self.packing_identifiers.get("end", -1)
        ends = np.flatnonzero(tokens == end)
        if self.spec.packing == "documents":
            return self._text_with_specials(tokens[: ends[0]] if len(ends) else tokens)
        return "\n".join(self._text_with_specials(document) for document in np.split(tokens, ends))

    def _text_with_specials(self, tokens: np.ndarray) -> str:
        """The text of tokens `[any]`, in which begin, end and padding are nothing."""
        first, specials = self.num_symbols, self.spec.special_tokens
        tokens = tokens[tokens < first + len(specials)]
        pieces = np.split(tokens, np.flatnonzero(tokens >= first)) if specials else [tokens]
        text = self.text_of(pieces[0])
        for piece in pieces[1:]:
            text += specials[piece[0] - first] + self.text_of(piece[1:])
        return text

    @property
    def _stored_dtype(self) -> str:
        return "uint8" if self.vocabulary <= 2**8 else "uint16" if self.vocabulary <= 2**16 else "int32"

    def layout(self, labels: tuple[str, ...] = ()) -> Layout:
        identifiers = self.packing_identifiers
        return Layout(
            modality="text",
            view="tokens",
            shape=(self.spec.length,),
            stored_dtype=self._stored_dtype,
            likelihood="categorical",
            vocabulary=self.vocabulary,
            continuous=self.spec.packing == "windows",
            begin_token=identifiers.get("begin"),
            end_token=identifiers.get("end"),
            pad_token=identifiers.get("pad"),
            labels=labels,
        )

    def state(self) -> dict[str, Any]:
        return {"spec": self.spec.model_dump(mode="json"), "separate_documents": self.separate_documents}

    def restore(self, state: dict[str, Any]) -> None:
        self.separate_documents = state["separate_documents"]

    def to_bytes(self, raw: str) -> bytes:
        return raw.encode("utf-8", errors="replace")


class OpenCodec(TextCodec):
    """A text codec of known symbols, the last of which stands for all others."""

    @property
    def unknown(self) -> int:
        """The identifier of what was not seen in training."""
        return self.num_symbols - 1

    def count_unknown(self, raw: str) -> int:
        symbols, _ = self.symbols(list(self.between_specials([raw])))
        return int((symbols == self.unknown).sum())
