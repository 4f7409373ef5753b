"""The spec's `data.codec`: how a text, a picture or a sound becomes what a network sees."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.reading import Count, Strict


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
    """UTF-8 bytes: 245 symbols, all that UTF-8 has, and the special ones; nothing is ever unknown."""

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
