"""The log-mel codec: a spectrogram as a picture, which Griffin-Lim turns back into sound.

torch transforms; nothing to fit. Runs in Ray Data's workers when preparing, and wherever sound is generated. torch is
imported where it is used: it costs a fresh worker seconds, and only this codec needs it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pipeline.data.audio import SoundCodec
from pipeline.data.layout import Layout
from pipeline.errors import CodecError
from pipeline.spec import LogMelCodecSpec

if TYPE_CHECKING:
    from torch import Tensor

LOG_FLOOR = float(np.log(1e-5))
"""The natural logarithm of the smallest mel magnitude told from silence (-100 dB)."""


class LogMelCodec(SoundCodec):
    """Log-mel magnitudes `[1, mels, frames]`, frames = num_samples // hop.

    Magnitudes are scaled so that a full-scale sine peaks near 1, and their logarithm so that [1e-5, 1] fills
    [-1, 1]. The way back solves for non-negative magnitudes under the mel filters and finds phases by fast Griffin-Lim
    (Perraudin et al. 2013) from a fixed start, so that the same picture gives the same sound.

    Phases, and what lies between the mel bands, are lost. At the default sizes the log-mel of the sound that comes back
    differs by 0.5 dB on average over 50 spoken digits of FSDD (0.9 dB in the worst), by 1 to 4 dB for pure tones, where
    most of the picture is silence; its spectral convergence, the norm of the difference over that of the original, is
    0.07 (0.10) for speech and 0.09 to 0.13 for tones on mel magnitudes, 0.26 (0.36) for speech on linear ones.
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
