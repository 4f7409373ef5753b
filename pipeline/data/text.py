"""Text codecs: bytes, characters and byte-pair encoding, as a stream of windows or as padded documents.

Plain Python; fitted by the driver on the training texts, applied by Ray Data's workers. Identifiers are the
symbols first, then the special tokens, so that a symbol's identifier never depends on the packing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.data.layout import Layout, Modality
from pipeline.errors import CodecError
from pipeline.spec import BpeCodecSpec, BytesCodecSpec, CharactersCodecSpec, TextCodecSpec

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class TextCodec(ABC):
    """What the text codecs share: special tokens, packing, and the way back.

    In `windows` a document is its symbols and an end token; a corpus of one document has no end token
    (`separate_documents` is False), so that nats per character are exact. In `documents` it is begin, symbols,
    end and padding; one that is cut has no end token.
    """

    modality: ClassVar[Modality] = "text"
    extension: ClassVar[str] = ".txt"
    needs_fit: ClassVar[bool] = True

    def __init__(self, spec: TextCodecSpec) -> None:
        self.spec = spec
        self.separate_documents = True

    @property
    @abstractmethod
    def num_symbols(self) -> int:
        """Identifiers below this are symbols."""

    @abstractmethod
    def symbols(self, text: str) -> np.ndarray:
        """The identifiers of `text`, int64 `[any]`, without special tokens."""

    @abstractmethod
    def text_of(self, symbols: np.ndarray) -> str:
        """The text of symbol identifiers `[any]`."""

    @abstractmethod
    def fit(self, raws: Iterable[str]) -> None:
        """Learn the symbols from training texts."""

    def count_unknown(self, raw: str) -> int:
        return 0

    @property
    def _specials(self) -> dict[str, int]:
        names = ["begin", "end", "pad"] if self.spec.packing == "documents" else ["end"] * self.separate_documents
        return {name: self.num_symbols + i for i, name in enumerate(names)}

    def decode_payload(self, payload: str | bytes, rate: int | None = None) -> str:
        """Raises: CodecError when a file is not UTF-8."""
        if isinstance(payload, str):
            return payload
        try:
            return bytes(payload).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CodecError(f"not UTF-8 text: byte 0x{payload[error.start]:02x} at {error.start}") from None

    def encode(self, raw: str) -> np.ndarray:
        """Identifiers of one document: `[length]` in documents, `[any]` in windows."""
        symbols, specials, length = self.symbols(raw), self._specials, self.spec.length
        dtype = self.layout().stored_dtype
        if self.spec.packing == "windows":
            end = [specials["end"]] if self.separate_documents else []
            return np.concatenate([symbols, end]).astype(dtype)
        example = np.full(length, specials["pad"], dtype)
        example[0] = specials["begin"]
        kept = symbols[: length - 1]
        example[1 : 1 + len(kept)] = kept
        if len(kept) + 1 < length:
            example[len(kept) + 1] = specials["end"]
        return example

    def decode(self, example: np.ndarray) -> str:
        """Text of integers `[T]`: a document up to its end token; in windows, documents parted by a line's end."""
        tokens = np.asarray(example).astype(np.int64).reshape(-1)
        end = self._specials.get("end")
        ends = np.flatnonzero(tokens == end) if end is not None else np.zeros(0, np.int64)
        if self.spec.packing == "documents":
            tokens = tokens[: ends[0]] if len(ends) else tokens
            return self.text_of(tokens[tokens < self.num_symbols])
        pieces = np.split(tokens, ends)
        return "\n".join(self.text_of(piece[piece < self.num_symbols]) for piece in pieces)

    def layout(self, labels: tuple[str, ...] = ()) -> Layout:
        specials = self._specials
        vocabulary = self.num_symbols + len(specials)
        return Layout(
            modality="text",
            view="tokens",
            shape=(self.spec.length,),
            stored_dtype="uint8" if vocabulary <= 2**8 else "uint16" if vocabulary <= 2**16 else "int32",
            likelihood="categorical",
            vocabulary=vocabulary,
            continuous=self.spec.packing == "windows",
            begin_token=specials.get("begin"),
            end_token=specials.get("end"),
            pad_token=specials.get("pad"),
            labels=labels,
        )

    def state(self) -> dict[str, Any]:
        return {"spec": self.spec.model_dump(mode="json"), "separate_documents": self.separate_documents}

    def restore(self, state: dict[str, Any]) -> None:
        self.separate_documents = state["separate_documents"]

    def to_bytes(self, raw: str) -> bytes:
        return raw.encode("utf-8", errors="replace")


class BytesCodec(TextCodec):
    """UTF-8 bytes: 256 symbols, nothing to fit, nothing unknown."""

    needs_fit: ClassVar[bool] = False
    num_symbols = 256

    def __init__(self, spec: BytesCodecSpec) -> None:
        super().__init__(spec)

    def fit(self, raws: Iterable[str]) -> None:
        """Bytes have nothing to learn."""

    def symbols(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64)

    def text_of(self, symbols: np.ndarray) -> str:
        return symbols.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class CharactersCodec(TextCodec):
    """The Unicode characters of the training texts, sorted, and one symbol for all others."""

    def __init__(self, spec: CharactersCodecSpec) -> None:
        super().__init__(spec)
        self.min_count = spec.min_count
        self.characters = ""

    @property
    def num_symbols(self) -> int:
        return len(self.characters) + 1

    @property
    def unknown(self) -> int:
        return len(self.characters)

    @cached_property
    def _identifiers(self) -> np.ndarray:
        """The identifier of every code point, int64 `[highest known + 2]`; the last stands for all higher ones."""
        points = _code_points(self.characters)
        table = np.full(int(points.max(initial=0)) + 2, self.unknown, np.int64)
        table[points] = np.arange(len(points))
        return table

    def fit(self, raws: Iterable[str]) -> None:
        """Raises: CodecError when no character is seen `min_count` times."""
        counts: Counter[str] = Counter()
        for raw in raws:
            counts.update(raw)
        self._set_characters("".join(sorted(c for c, count in counts.items() if count >= self.min_count)))
        if not self.characters:
            raise CodecError(
                f"no character of the training texts is seen {self.min_count} times; lower data.codec.min_count"
            )

    def _set_characters(self, characters: str) -> None:
        self.characters = characters
        self.__dict__.pop("_identifiers", None)

    def symbols(self, text: str) -> np.ndarray:
        table = self._identifiers
        identifiers: np.ndarray = table[np.minimum(_code_points(text), len(table) - 1)]
        return identifiers

    def text_of(self, symbols: np.ndarray) -> str:
        alphabet = self.characters + UNKNOWN
        return "".join(alphabet[i] for i in symbols)

    def count_unknown(self, raw: str) -> int:
        return int((self.symbols(raw) == self.unknown).sum())

    def state(self) -> dict[str, Any]:
        return {**super().state(), "characters": self.characters}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._set_characters(state["characters"])


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)


class BpeCodec(TextCodec):
    """Byte-level byte-pair encoding (Sennrich et al. 2016): every text is representable, nothing is unknown."""

    def __init__(self, spec: BpeCodecSpec) -> None:
        super().__init__(spec)
        self.vocabulary_size = spec.vocabulary_size
        self.tokenizer = Tokenizer(models.BPE())
        self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.tokenizer.decoder = decoders.ByteLevel()

    @property
    def num_symbols(self) -> int:
        return self.tokenizer.get_vocab_size()

    def fit(self, raws: Iterable[str]) -> None:
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary_size - len(self._specials),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        self.tokenizer.train_from_iterator(raws, trainer)

    def symbols(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer.encode(text).ids, np.int64)

    def text_of(self, symbols: np.ndarray) -> str:
        return str(self.tokenizer.decode(symbols.tolist(), skip_special_tokens=False))

    def state(self) -> dict[str, Any]:
        return {**super().state(), "tokenizer": self.tokenizer.to_str()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.tokenizer = Tokenizer.from_str(state["tokenizer"])
