"""Codecs: what turns a raw record into the tensor of one example and back, one class a `data.codec.kind`.

Plain Python and NumPy, in whichever process needs it: Ray Data's workers encode, the driver fits, generation
decodes. A codec's fitted state is JSON and travels in the manifest, the checkpoint and the registered model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipeline.data.audio import MuLawCodec, WaveformCodec
from pipeline.data.characters import BytesCodec, CharactersCodec
from pipeline.data.decoded import MAX_BYTES, Decoded
from pipeline.data.image import ImageCodec, RasterCodec
from pipeline.data.layout import Layout, Modality
from pipeline.data.log_mel import LogMelCodec
from pipeline.data.subwords import BpeCodec, UnigramCodec
from pipeline.data.text import TextCodec
from pipeline.data.words import WordsCodec
from pipeline.errors import CodecError
from pipeline.spec import AnyCodecSpec


class Codec(Protocol):
    """A modality's map between raw records and examples.

    Raw is a string, a picture uint8 `[H, W, C]` or mono sound float32 `[T]` in [-1, 1] at `layout.sample_rate_hz`.
    """

    modality: ClassVar[Modality]
    needs_fit: ClassVar[bool]
    extension: ClassVar[str]

    @property
    def spec(self) -> Any: ...

    def fit(self, raws: Iterable[Any]) -> None:
        """Learn from the training split, which is read once and not kept. Raises: CodecError when there is nothing to
        learn from."""

    def open(self, payload: Any, rate: int | None = None, max_bytes: int = MAX_BYTES) -> Decoded:
        """A record's payload as raw, not yet of the codec's size, and the facts of its file.

        Raises: CodecError with the reason when it cannot be decoded, or decodes to more than `max_bytes`.
        """

    def shape(self, raw: Any, key: str = "") -> list[Any]:
        """The pieces, each an example, that `raw` makes: a text as it is, a picture of the codec's size, segments of a
        sound (none when nothing but silence is left). `key`, the record's identifier, decides what is left to chance.

        Raises: CodecError on a text that no UTF-8 can hold.
        """

    def decode_payload(self, payload: Any, rate: int | None = None) -> Any:
        """The first piece of what `open` gives. Raises: CodecError with the reason when it cannot be decoded."""

    def encode(self, raw: Any) -> np.ndarray:
        """One example in the stored type: the layout's shape, or `[any]` for text in windows."""

    def encode_batch(self, raws: Sequence[Any]) -> list[np.ndarray]:
        """What `encode` gives of each; for texts 15 to 50 times as fast."""

    def decode(self, example: np.ndarray) -> Any:
        """Raw from one example in the model's representation (a network's integers or floats)."""

    def layout(self, labels: tuple[str, ...] = ()) -> Layout:
        """What a network learns of the examples, once the codec is fitted."""

    def state(self) -> dict[str, Any]:
        """Everything `codec_from_state` needs, of JSON types."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""

    def meanings(self) -> tuple[Hashable, ...]:
        """What each token stands for, by its identifier: tokens of one meaning are the same in any two codecs of a
        modality, whatever their identifiers. Empty where examples are signals."""

    def count_unknown(self, raw: Any) -> int:
        """How many symbols of `raw` the codec cannot tell from each other (0 for all but characters and words)."""

    def to_bytes(self, raw: Any) -> bytes:
        """`raw` as the contents of a file with `extension`; the same raw, the same bytes."""


CODECS: dict[str, Callable[[Any], Codec]] = {
    "bytes": BytesCodec,
    "characters": CharactersCodec,
    "words": WordsCodec,
    "bpe": BpeCodec,
    "unigram": UnigramCodec,
    "image": ImageCodec,
    "raster": RasterCodec,
    "waveform": WaveformCodec,
    "log_mel": LogMelCodec,
    "mu_law": MuLawCodec,
}

_SPECS: TypeAdapter[Any] = TypeAdapter(AnyCodecSpec)


def make_codec(spec: Any, single_document: bool = False) -> Codec:
    """A codec of `spec.kind`, not fitted yet; a text corpus of a single document needs no token between documents.

    Raises: CodecError when the spec's numbers do not fit together.
    """
    codec = CODECS[spec.kind](spec)
    if single_document and isinstance(codec, TextCodec):
        codec.separate_documents = False
    return codec


def codec_from_state(state: dict[str, Any]) -> Codec:
    """The fitted codec that `Codec.state` described. Raises: CodecError when the state is not one."""
    try:
        codec = make_codec(_SPECS.validate_python(state["spec"]))
        codec.restore(state)
    except (KeyError, ValidationError) as error:
        raise CodecError(f"this is not the state of a codec ({error}); prepare the corpus again") from None
    return codec
