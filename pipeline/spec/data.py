"""The spec's `data`: the corpus, how it is cleaned, deduplicated and split, and the codec (`sources.py`, `codecs.py`).

All of it but what only says how fast (`DataSpec.NOT_CONTENT`) goes into the key of the prepared set.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.reading import Count, Share, Strict
from pipeline.spec.codecs import AnyCodecSpec
from pipeline.spec.sources import AnySource

# --- cleaning -------------------------------------------------------------------------------------------------

PersonalData = Literal["email", "telephone", "card", "bank_account", "national_number", "ip_address", "url_credentials"]


class TextCleaningSpec(Strict):
    """Steps on texts, in this order.

    `unicode`: `nfc` composes characters, `ftfy` also repairs text that was decoded wrongly. `remove_control`: control
    characters but tab and newline, lone surrogates, byte-order marks. `personal_data` (of the kinds in
    `personal_data_kinds`) is kept, masked by its kind in brackets (`[email]`), or the text is dropped. A text is
    dropped when it has a line of the file `block_list` in it, is outside [`min_characters`, `max_characters`], when
    more than `max_repeated` of it is in repeated lines or phrases, more than `max_symbols` of it is neither letter,
    digit, mark nor space, or its language (ISO 639-1) is none of `languages`.
    """

    unicode: Literal["nfc", "ftfy", "keep"] = "nfc"
    remove_control: bool = True
    personal_data: Literal["keep", "mask", "drop"] = "keep"
    personal_data_kinds: tuple[PersonalData, ...] = (
        "email",
        "telephone",
        "card",
        "bank_account",
        "national_number",
        "ip_address",
        "url_credentials",
    )
    block_list: str | None = None
    min_characters: Count = 1
    max_characters: Count | None = None
    max_repeated: Annotated[float | None, Field(gt=0, le=1)] = None
    max_symbols: Annotated[float | None, Field(gt=0, le=1)] = None
    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2}$")], ...] = ()


class ImageCleaningSpec(Strict):
    """Pictures are dropped when a side is under `min_side` pixels, or the standard deviation of their grey levels in
    [0, 1] is under `min_contrast` (near-constant)."""

    min_side: Count = 1
    min_contrast: Annotated[float, Field(ge=0, le=1)] = 0.0


class AudioCleaningSpec(Strict):
    """Sounds are dropped when shorter or longer than these seconds, when their loudest 50 ms are under
    `min_level_dbfs` (silence), or when more than `max_clipped` of the samples are at full scale."""

    min_seconds: Annotated[float, Field(ge=0)] = 0.0
    max_seconds: Annotated[float | None, Field(gt=0)] = None
    min_level_dbfs: Annotated[float | None, Field(le=0)] = None
    max_clipped: Annotated[float | None, Field(gt=0, le=1)] = None


class CleaningSpec(Strict):
    """The steps of the corpus's modality, and `opt_out`: a file of record ids, sha256 hashes (of a file's bytes or a
    text's UTF-8) or origins, one a line, that no prepared set may hold."""

    text: TextCleaningSpec = TextCleaningSpec()
    image: ImageCleaningSpec = ImageCleaningSpec()
    audio: AudioCleaningSpec = AudioCleaningSpec()
    opt_out: str | None = None


class DuplicatesSpec(Strict):
    """What becomes of records that are there twice.

    `exact`: the same content after cleaning; of each, the first in the corpus is kept, or all. `near`: edited text
    (MinHash, Broder 1997), re-encoded or resized pictures (perceptual hash), re-sampled sound (spectral fingerprint);
    `drop` keeps the first of a cluster, `keep` keeps all of it on one side of the split, `off` does not look.
    `similarity`, in (0, 1], is that from which two records are near: the Jaccard similarity of word shingles for text,
    the correlation of small versions for pictures and sound; by default what was measured to be right for the modality.
    """

    exact: Literal["drop", "keep"] = "drop"
    near: Literal["drop", "keep", "off"] = "keep"
    similarity: Annotated[float | None, Field(gt=0, le=1)] = None


class SplitSpec(Strict):
    """How records part into train, validation and test.

    `hash`: by a stable hash of the record's content. `given`: the source says which records are test (a folder, a
    pattern, a field, an array) and may say which are validation; if it names none, they are taken from the training
    records by hash. `position`: each text gives its first part to train, the next to validation, the last to test.
    A cluster of duplicates, and a group where the source names one, is on one side, except where a given split parts
    it: such `leakage` is reported, or its training records are dropped, or the preparation is refused.
    """

    kind: Literal["hash", "given", "position"] = "hash"
    validation: Share = 0.05
    test: Share = 0.1
    leakage: Literal["report", "drop", "refuse"] = "report"

    @model_validator(mode="after")
    def _some_is_left(self) -> SplitSpec:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing to train on; lower one")
        return self


class PromptSpec(Strict):
    """A text prompt a record, for models that are conditioned on one.

    `of: label` takes the record's label, `of: source` what the source gives (`prompt_pattern`, `prompt_field`);
    `words` says what is written for it (`{"7": seven}`), itself where it is not among them. A prompt is at most
    `length` tokens of a codec of bytes, with the ones that begin and end it.
    """

    of: Literal["label", "source"] = "label"
    words: dict[str, str] = Field(default_factory=dict)
    length: Annotated[int, Field(ge=3)] = 32


class DataSpec(Strict):
    """The corpus and how it is prepared.

    `limit` takes that many records, evenly spaced. A record that decodes to more than `max_record_megabytes` is
    quarantined without being decoded; more than `max_quarantined` of all records and the preparation fails.
    `shard_megabytes`: the size of a shard's examples before compression. `keep_read` keeps what was read and decoded
    of each source file, so that the next preparation of a corpus that grew reads only what is new.
    """

    source: AnySource
    cleaning: CleaningSpec = CleaningSpec()
    duplicates: DuplicatesSpec = DuplicatesSpec()
    split: SplitSpec = SplitSpec()
    codec: AnyCodecSpec
    prompt: PromptSpec | None = None
    limit: Annotated[int | None, Field(ge=1)] = None
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01
    max_record_megabytes: Count = 256
    shard_megabytes: Annotated[float, Field(gt=0)] = 16
    keep_read: bool = True

    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset({"keep_read", "max_quarantined"})
    """Keys with which the prepared set is the same."""
