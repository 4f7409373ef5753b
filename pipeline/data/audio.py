"""Sound codecs: 16-bit samples or mu-law tokens, and what all sound codecs share.

Nothing to fit. Runs in Ray Data's workers when preparing, and wherever sound is generated; soundfile is imported where
sound is written, since training does without it.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from pipeline.data.decoded import MAX_BYTES, Decoded
from pipeline.data.layout import Layout, Modality
from pipeline.data.sound_reading import read_sound
from pipeline.data.sound_shaping import bring_to_loudness, check_loudness_rate, cut_segments, trim_silence
from pipeline.spec import MuLawCodecSpec, SoundCodecSpec, WaveformCodecSpec

PCM16_PEAK = 32767


class SoundCodec(ABC):
    """What the sound codecs share: reading, mono, the sample rate, the length, and WAV."""

    modality: ClassVar[Modality] = "audio"
    extension: ClassVar[str] = ".wav"
    needs_fit: ClassVar[bool] = False

    def __init__(self, spec: SoundCodecSpec) -> None:
        self.spec = spec
        if spec.loudness_lufs is not None:
            check_loudness_rate(spec.sample_rate_hz)

    def fit(self, raws: Iterable[np.ndarray]) -> None:  # noqa: B027
        """Sound has nothing to learn: the scales are fixed."""

    def meanings(self) -> tuple[Hashable, ...]:
        return ()

    def count_unknown(self, raw: np.ndarray) -> int:
        return 0

    def state(self) -> dict[str, Any]:
        return {"spec": self.spec.model_dump(mode="json")}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """All there is to know is in the spec."""

    def open(self, payload: bytes | np.ndarray, rate: int | None = None, max_bytes: int = MAX_BYTES) -> Decoded:
        """A sound file's bytes, or floats `[T]` at `rate` hertz, as mono float32 `[any]` at the codec's rate: as much
        of it as `shape` needs.

        Raises: CodecError when the sound is larger than `max_bytes`, damaged or none, or holds values that are not
        finite.
        """
        return read_sound(payload, rate, self.spec.sample_rate_hz, max_bytes, self._num_needed)

    @property
    def _num_needed(self) -> int | None:
        """How many samples of a clip `shape` looks at; None for all."""
        spec = self.spec
        whole = spec.segments == "all" or spec.trim_silence_dbfs is not None or spec.loudness_lufs is not None
        return None if whole else spec.num_samples

    def shape(self, raw: np.ndarray, key: str = "") -> list[np.ndarray]:
        """Mono float32 `[any]` as pieces `[at most num_samples]`: silence trimmed, loudness set, cut, as the spec says.
        Nothing is left of a sound that is silent from end to end where silence is trimmed."""
        spec = self.spec
        if spec.trim_silence_dbfs is not None:
            raw = trim_silence(raw, spec.sample_rate_hz, spec.trim_silence_dbfs)
        if spec.loudness_lufs is not None:
            raw = bring_to_loudness(raw, spec.sample_rate_hz, spec.loudness_lufs)
        pieces = cut_segments(raw, spec.num_samples)
        return pieces[:1] if spec.segments == "first" else pieces

    def decode_payload(self, payload: bytes | np.ndarray, rate: int | None = None) -> np.ndarray:
        """The first piece `[at most num_samples]`, `[0]` when nothing is left. Raises: CodecError when it cannot be
        read."""
        raw: np.ndarray = self.open(payload, rate).raw
        return next(iter(self.shape(raw)), raw[:0])

    @abstractmethod
    def encode(self, raw: np.ndarray) -> np.ndarray: ...

    def encode_batch(self, raws: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What `encode` gives of each sound."""
        return [self.encode(raw) for raw in raws]

    def _fitted(self, raw: np.ndarray) -> np.ndarray:
        """`raw` `[any]` cut, or padded with silence, to `num_samples`, within [-1, 1]."""
        samples = np.zeros(self.spec.num_samples, np.float32)
        kept = raw[: self.spec.num_samples]
        samples[: len(kept)] = np.clip(kept, -1, 1)
        return samples

    def to_bytes(self, raw: np.ndarray) -> bytes:
        """A 16-bit WAV of floats `[T]` in [-1, 1]."""
        import soundfile

        sink = io.BytesIO()
        soundfile.write(sink, _as_pcm16(raw), self.spec.sample_rate_hz, format="WAV", subtype="PCM_16")
        return sink.getvalue()


def _as_pcm16(samples: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(samples, -1, 1) * PCM16_PEAK).astype(np.int16)


class WaveformCodec(SoundCodec):
    """16-bit samples as a signal `[1, T]`, in [-1, 1] for networks; samples within it come back within half a step,
    0.5 / 32767."""

    def __init__(self, spec: WaveformCodecSpec) -> None:
        super().__init__(spec)

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """float32 `[any]` as int16 `[1, num_samples]`."""
        return _as_pcm16(self._fitted(raw))[None]

    def decode(self, example: np.ndarray) -> np.ndarray:
        """Floats `[1, T]` as float32 `[T]`, cut to [-1, 1]."""
        return np.clip(np.asarray(example, np.float32).reshape(-1), -1, 1)

    def layout(self, labels: tuple[str, ...] = ()) -> Layout:
        return Layout(
            modality="audio",
            view="signal",
            shape=(1, self.spec.num_samples),
            stored_dtype="int16",
            likelihood="gaussian",
            scale=1 / PCM16_PEAK,
            low=-1.0,
            sample_rate_hz=self.spec.sample_rate_hz,
            labels=labels,
        )


class MuLawCodec(SoundCodec):
    """Samples as `levels` tokens, finer near silence (ITU-T G.711, the continuous formula).

    With mu = levels - 1, a sample x in [-1, 1] comes back within (|x| + 1 / mu) * ((1 + mu) ** (1 / mu) - 1). A sound
    shorter than the example is followed by a token for its end, then by padding, so that a model learns how long sounds
    are and is not praised for the silence behind them; both come back as silence.
    """

    def __init__(self, spec: MuLawCodecSpec) -> None:
        super().__init__(spec)
        self.levels = spec.levels
        self.end_token, self.pad_token = spec.levels, spec.levels + 1
        self.dtype = np.min_scalar_type(self.pad_token)

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """float32 `[any]` as tokens `[num_samples]`, uint8, or uint16 where they are more than 256."""
        samples, mu = self._fitted(raw), self.levels - 1
        compressed = np.sign(samples) * np.log1p(mu * np.abs(samples)) / np.log1p(mu)
        tokens = np.floor((compressed + 1) / 2 * mu + 0.5).astype(self.dtype)
        tokens[len(raw) : len(raw) + 1] = self.end_token
        tokens[len(raw) + 1 :] = self.pad_token
        return tokens

    def meanings(self) -> tuple[Hashable, ...]:
        """The number of levels and the token: what one stands for depends on both."""
        return tuple((self.levels, token) for token in range(self.layout().vocabulary))

    def decode(self, example: np.ndarray) -> np.ndarray:
        """Integers `[T]` as float32 `[T]` in [-1, 1]."""
        tokens, mu = np.asarray(example).reshape(-1), self.levels - 1
        compressed = 2 * np.clip(tokens, 0, mu).astype(np.float32) / mu - 1
        compressed[tokens > mu] = 0
        return np.asarray(np.sign(compressed) * np.expm1(np.abs(compressed) * np.log1p(mu)) / mu, np.float32)

    def layout(self, labels: tuple[str, ...] = ()) -> Layout:
        return Layout(
            modality="audio",
            view="tokens",
            shape=(self.spec.num_samples,),
            stored_dtype=self.dtype.name,
            likelihood="categorical",
            vocabulary=self.levels + 2,
            end_token=self.end_token,
            pad_token=self.pad_token,
            sample_rate_hz=self.spec.sample_rate_hz,
            labels=labels,
        )
