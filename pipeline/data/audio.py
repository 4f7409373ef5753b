"""Sound codecs: a waveform, a log-mel picture that Griffin-Lim turns back into sound, or mu-law tokens.

soundfile reads, soxr resamples, torch transforms; nothing to fit. Runs in Ray Data's workers when preparing, and
wherever sound is generated. torch is imported where it is used: it costs a fresh worker seconds, and only log-mel
needs it.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import soundfile

from pipeline.data.decoded import MAX_BYTES, Decoded
from pipeline.data.layout import Layout, Modality
from pipeline.data.sound_reading import read_sound
from pipeline.data.sound_shaping import bring_to_loudness, check_loudness_rate, cut_segments, trim_silence
from pipeline.errors import CodecError
from pipeline.spec import LogMelCodecSpec, MuLawCodecSpec, SoundCodecSpec, WaveformCodecSpec

if TYPE_CHECKING:
    from torch import Tensor

PCM16_PEAK = 32767
LOG_FLOOR = float(np.log(1e-5))
"""The natural logarithm of the smallest mel magnitude told from silence (-100 dB)."""


class SoundCodec(ABC):
    """What the sound codecs share: reading, mono, the sample rate, the length, and WAV."""

    modality: ClassVar[Modality] = "audio"
    extension: ClassVar[str] = ".wav"
    needs_fit: ClassVar[bool] = False

    def __init__(self, spec: SoundCodecSpec) -> None:
        self.spec = spec
        if spec.loudness_lufs is not None:
            check_loudness_rate(spec.sample_rate_hz)

    def fit(self, raws: Iterable[np.ndarray]) -> None:
        """Sound has nothing to learn: the scales are fixed."""

    def count_unknown(self, raw: np.ndarray) -> int:
        return 0

    def state(self) -> dict[str, Any]:
        return {"spec": self.spec.model_dump(mode="json")}

    def restore(self, state: dict[str, Any]) -> None:
        """All there is to know is in the spec."""

    def open(self, payload: bytes | np.ndarray, rate: int | None = None, max_bytes: int = MAX_BYTES) -> Decoded:
        """A sound file's bytes, or floats `[T]` at `rate` hertz, as mono float32 `[any]` at the codec's rate: as much of
        it as `shape` needs.

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
        sink = io.BytesIO()
        soundfile.write(sink, _as_pcm16(raw), self.spec.sample_rate_hz, format="WAV", subtype="PCM_16")
        return sink.getvalue()


def _as_pcm16(samples: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(samples, -1, 1) * PCM16_PEAK).astype(np.int16)


class WaveformCodec(SoundCodec):
    """16-bit samples as a signal `[1, T]`, in [-1, 1] for networks."""

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
    """Samples as `levels` tokens, finer near silence (ITU-T G.711, the continuous formula)."""

    def __init__(self, spec: MuLawCodecSpec) -> None:
        super().__init__(spec)
        self.levels = spec.levels

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """float32 `[any]` as uint8 tokens `[num_samples]`."""
        samples, mu = self._fitted(raw), self.levels - 1
        compressed = np.sign(samples) * np.log1p(mu * np.abs(samples)) / np.log1p(mu)
        return np.floor((compressed + 1) / 2 * mu + 0.5).astype(np.uint8)

    def decode(self, example: np.ndarray) -> np.ndarray:
        """Integers `[T]` as float32 `[T]` in [-1, 1]."""
        mu = self.levels - 1
        compressed = 2 * np.clip(np.asarray(example), 0, mu).astype(np.float32).reshape(-1) / mu - 1
        return np.asarray(np.sign(compressed) * np.expm1(np.abs(compressed) * np.log1p(mu)) / mu, np.float32)

    def layout(self, labels: tuple[str, ...] = ()) -> Layout:
        return Layout(
            modality="audio",
            view="tokens",
            shape=(self.spec.num_samples,),
            stored_dtype="uint8",
            likelihood="categorical",
            vocabulary=self.levels,
            sample_rate_hz=self.spec.sample_rate_hz,
            labels=labels,
        )


class LogMelCodec(SoundCodec):
    """Log-mel magnitudes `[1, mels, frames]`, frames = num_samples // hop.

    Magnitudes are scaled so that a full-scale sine peaks near 1, and their logarithm so that [1e-5, 1] fills
    [-1, 1]. The way back solves for non-negative magnitudes under the mel filters and finds phases by fast Griffin-Lim
    (Perraudin et al. 2013) from a fixed start, so that the same picture gives the same sound.
    """

    griffin_lim_steps: ClassVar[int] = 32
    griffin_lim_momentum: ClassVar[float] = 0.99

    def __init__(self, spec: LogMelCodecSpec) -> None:
        super().__init__(spec)
        self.num_mels, self.hop, self.fft = spec.num_mels, spec.hop, spec.fft
        self.frames = spec.num_samples // spec.hop
        if spec.hop > spec.fft // 2 or spec.fft > spec.num_samples or spec.num_mels > spec.fft // 2:
            raise CodecError(
                f"data.codec: hop {spec.hop}, fft {spec.fft}, num_mels {spec.num_mels}, num_samples "
                f"{spec.num_samples}; hop and num_mels may be at most half of fft, and fft at most num_samples"
            )

    @cached_property
    def _window(self) -> Tensor:
        import torch

        return torch.hann_window(self.fft)

    @cached_property
    def _filters(self) -> Tensor:
        """Triangular mel filters `[mels, fft // 2 + 1]`, equally wide on the mel scale, each summing to 1."""
        import torch

        nyquist = self.spec.sample_rate_hz / 2
        bins = torch.linspace(0, nyquist, self.fft // 2 + 1)
        mels = torch.linspace(0, 2595 * float(np.log10(1 + nyquist / 700)), self.num_mels + 2)
        edges = 700 * (10 ** (mels / 2595) - 1)
        rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
        filters = torch.minimum(rising, falling).clamp_min(0)
        nearest = (bins - edges[1:-1, None]).abs().argmin(dim=1)
        narrow = filters.sum(dim=1) == 0  # between two bins: take the nearest
        filters[narrow, nearest[narrow]] = 1
        return filters / filters.sum(dim=1, keepdim=True)

    def _transform(self, samples: Tensor) -> Tensor:
        """float `[T]` → complex `[fft // 2 + 1, T // hop + 1]`, a full-scale sine at magnitude 1."""
        import torch

        spectrum = torch.stft(samples, self.fft, self.hop, window=self._window, return_complex=True)
        return spectrum * (2 / self._window.sum())

    def _inverse(self, spectrum: Tensor) -> Tensor:
        import torch

        scaled = spectrum / (2 / self._window.sum())
        return torch.istft(scaled, self.fft, self.hop, window=self._window, length=self.spec.num_samples)

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """float32 `[any]` as float32 `[1, mels, frames]` in [-1, 1]."""
        import torch

        magnitudes = self._transform(torch.from_numpy(self._fitted(raw))).abs()[:, : self.frames]
        log_mel = torch.log((self._filters @ magnitudes).clamp_min(1e-5))
        return (1 - log_mel / (LOG_FLOOR / 2)).clamp(-1, 1)[None].numpy()

    def decode(self, example: np.ndarray) -> np.ndarray:
        """Floats `[1, mels, frames]` as float32 `[num_samples]` in [-1, 1]."""
        import torch

        scaled = torch.from_numpy(np.array(example, np.float32)).reshape(self.num_mels, self.frames).clamp(-1, 1)
        mel = torch.exp((1 - scaled) * (LOG_FLOOR / 2))
        mel[mel < 2e-5] = 0
        total = self.spec.num_samples // self.hop + 1
        mel = torch.cat([mel, mel[:, -1:].expand(-1, total - self.frames)], dim=1)
        magnitudes = self._magnitudes_under(mel)
        return self._griffin_lim(magnitudes).clamp(-1, 1).numpy()

    def _magnitudes_under(self, mel: Tensor) -> Tensor:
        """Non-negative magnitudes `[fft // 2 + 1, frames]` whose mel is `mel`, by multiplicative updates (Lee and
        Seung 2001)."""
        filters = self._filters
        magnitudes = filters.T @ mel
        for _ in range(30):
            magnitudes = magnitudes * (filters.T @ mel) / (filters.T @ (filters @ magnitudes)).clamp_min(1e-12)
        return magnitudes

    def _griffin_lim(self, magnitudes: Tensor) -> Tensor:
        """Samples `[num_samples]` whose spectrum has nearly these `magnitudes`."""
        import torch

        generator = torch.Generator().manual_seed(0)
        phases = torch.polar(
            torch.ones_like(magnitudes), 2 * torch.pi * torch.rand(magnitudes.shape, generator=generator)
        )
        previous = torch.zeros_like(phases)
        for _ in range(self.griffin_lim_steps):
            rebuilt = self._transform(self._inverse(magnitudes * phases))
            ahead = rebuilt + self.griffin_lim_momentum * (rebuilt - previous)
            phases = ahead / ahead.abs().clamp_min(1e-12)
            previous = rebuilt
        return self._inverse(magnitudes * phases)

    def layout(self, labels: tuple[str, ...] = ()) -> Layout:
        return Layout(
            modality="audio",
            view="signal",
            shape=(1, self.num_mels, self.frames),
            stored_dtype="float32",
            likelihood="gaussian",
            low=-1.0,
            sample_rate_hz=self.spec.sample_rate_hz,
            labels=labels,
        )
