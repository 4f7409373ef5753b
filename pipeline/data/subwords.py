"""Text codecs of learnt subwords: byte-pair encoding, and a unigram language model, both of bytes.

`tokenizers` trains on the driver and encodes in Ray Data's workers. Texts are cut into words by GPT-2's expression
(`ByteLevel`: no prefix space, no normaliser) and words are sequences of bytes: every text is representable and comes
back exactly. Checked with tokenizers 0.23: the same texts give the same vocabulary whatever the number of threads.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.data.text import TextCodec
from pipeline.errors import CodecError
from pipeline.spec import BpeCodecSpec, TrainedCodecSpec, UnigramCodecSpec

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
"""The characters that stand for the 256 bytes in a byte-level vocabulary."""


def byte_of_each() -> dict[str, int]:
    """The byte that each character of `ALPHABET` stands for: printable ones themselves, the others from U+0100 on in
    their order (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 256)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


class SubwordCodec(TextCodec):
    """What the learnt vocabularies share. Special tokens are kept out of the training and of the tokenizer: texts are
    cut at them first, so that no piece reaches across."""

    def __init__(self, spec: TrainedCodecSpec) -> None:
        super().__init__(spec)
        self.vocabulary_size = spec.vocabulary_size
        self._take(self._untrained())
        if self.num_trained <= len(ALPHABET):
            raise CodecError(
                f"data.codec: vocabulary_size {spec.vocabulary_size} leaves {self.num_trained} subwords beside "
                f"{len(spec.special_tokens)} special tokens; more than the {len(ALPHABET)} bytes are needed"
            )

    @property
    def num_trained(self) -> int:
        """How many of the vocabulary are subwords."""
        return self.vocabulary_size - len(self.spec.special_tokens) - len(self.packing_identifiers)

    @abstractmethod
    def _untrained(self) -> Tokenizer: ...

    @abstractmethod
    def _trainer(self) -> Any:
        """The trainer of `num_trained` subwords, all bytes among them."""

    def _take(self, tokenizer: Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.decoder = decoders.ByteLevel()
        self.tokenizer = tokenizer
        self._num_symbols: int = tokenizer.get_vocab_size()

    @property
    def num_symbols(self) -> int:
        return self._num_symbols

    def fit(self, raws: Iterable[str]) -> None:
        tokenizer = self._untrained()
        tokenizer.pre_tokenizer = self.tokenizer.pre_tokenizer
        tokenizer.train_from_iterator(self.between_specials(raws), self._trainer())
        self._take(tokenizer)

    def symbols(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter(chain.from_iterable(encoded), np.int64, int(lengths.sum())), lengths

    def symbol_meanings(self) -> Sequence[Hashable]:
        """The bytes of each piece of the vocabulary."""
        bytes_of = byte_of_each()
        pieces = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return [bytes(bytes_of[character] for character in piece) for piece, _ in pieces]

    def text_of(self, symbols: np.ndarray) -> str:
        return str(self.tokenizer.decode(symbols.tolist(), skip_special_tokens=False))

    def state(self) -> dict[str, Any]:
        return {**super().state(), "tokenizer": self.tokenizer.to_str()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._take(Tokenizer.from_str(state["tokenizer"]))


class BpeCodec(SubwordCodec):
    """Byte-level byte-pair encoding (Sennrich et al. 2016): every text is representable, nothing is unknown."""

    def __init__(self, spec: BpeCodecSpec) -> None:
        super().__init__(spec)

    def _untrained(self) -> Tokenizer:
        return Tokenizer(models.BPE())

    def _trainer(self) -> Any:
        return trainers.BpeTrainer(vocab_size=self.num_trained, initial_alphabet=ALPHABET, show_progress=False)


class UnigramCodec(SubwordCodec):
    """A byte-level unigram language model of subwords (Kudo 2018): every text is representable, and is cut into its
    likeliest pieces. The vocabulary is smaller than asked where the texts have no more pieces that pay."""

    decimals: ClassVar[int] = 6
    """Scores (natural logarithms) are rounded to these: the order in which threads add leaves noise of 1e-13."""

    def __init__(self, spec: UnigramCodecSpec) -> None:
        super().__init__(spec)

    def _untrained(self) -> Tokenizer:
        return Tokenizer(models.Unigram())

    def _trainer(self) -> Any:
        return trainers.UnigramTrainer(vocab_size=self.num_trained, initial_alphabet=ALPHABET, show_progress=False)

    def fit(self, raws: Iterable[str]) -> None:
        super().fit(raws)
        pieces = json.loads(self.tokenizer.to_str())["model"]["vocab"]
        self._take(Tokenizer(models.Unigram(self._in_order(pieces), None, False)))

    def _in_order(self, pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
        """Pieces and scores in an order that is a function of the texts alone.

        The trainer appends the bytes that it has no score for in the order of a randomly seeded hash map, each 1e-4
        less likely than the one before. Here the bytes below all longer pieces are given such scores by their own
        order, and all pieces are sorted by their score.
        """
        scores = {piece: round(score, self.decimals) for piece, score in pieces}
        lowest = min((score for piece, score in scores.items() if len(piece) > 1), default=0.0)
        rarest = sorted(piece for piece, score in scores.items() if len(piece) == 1 and score <= lowest)
        scores |= {piece: round(lowest - 1e-4 * i, self.decimals) for i, piece in enumerate(rarest, 1)}
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
