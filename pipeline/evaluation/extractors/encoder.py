"""What the corpus's own extractors have in common: convolutions from a signal to its features, and their training.

Plain PyTorch, on any one worker. Pictures and log-mel signals are seen as they are; a waveform becomes a log-mel
spectrogram inside the network.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.data.prepared import SplitArrays
from pipeline.models.base import derive_seed, make_generator
from pipeline.progress import Progress

STAGE = "extractor"


@dataclass(frozen=True)
class EncoderConfig:
    """What decides an extractor; a change makes a new one beside the old."""

    version: int = 1
    channels: tuple[int, ...] = (16, 32, 64)
    feature_size: int = 64
    longest_side: int = 48
    num_mels: int = 40
    steps: int = 400
    batch_size: int = 64
    lr: float = 2e-3
    seed: int = 0

    def digest(self, layout: Layout) -> str:
        text = json.dumps([asdict(self), layout.as_dict()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class LogMel(nn.Module):
    """Log-mel spectrogram `[B, 1, mels, frames]` of waveforms `[B, 1, T]` in [-1, 1], about 50 frames a sound.

    Triangular filters on the mel scale of O'Shaughnessy (1987), 2595 log10(1 + f / 700).
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate_hz: int, num_samples: int, num_mels: int) -> None:
        super().__init__()
        fft = 2 ** round(math.log2(0.032 * sample_rate_hz))
        while fft > num_samples:
            fft //= 2
        self.fft, self.hop = fft, max(fft // 4, num_samples // 48)
        self.register_buffer("window", torch.hann_window(fft), persistent=False)
        self.register_buffer("filters", mel_filters(sample_rate_hz, fft, num_mels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x.squeeze(1), self.fft, self.hop, window=self.window, return_complex=True).abs()
        return (spectrum.transpose(1, 2) @ self.filters).clamp(min=1e-3).log().transpose(1, 2).unsqueeze(1)


def mel_filters(sample_rate_hz: int, fft: int, num_mels: int) -> Tensor:
    """Triangular filters `[fft / 2 + 1, mels]`, each peaking at 1, from 0 Hz to half the sample rate."""
    top = 2595 * math.log10(1 + sample_rate_hz / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, num_mels + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, sample_rate_hz / 2, fft // 2 + 1, dtype=torch.float64).unsqueeze(1)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


class Encoder(nn.Module):
    """Convolutions with stride 2 and a linear layer to the features."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, layout: Layout, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        waveform = len(layout.space) == 1
        self.spectrogram = (
            LogMel(layout.sample_rate_hz or 16_000, layout.space[0], config.num_mels) if waveform else nn.Identity()
        )
        channels = [1 if waveform else layout.channels, *config.channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1)
            for before, after in zip(channels[:-1], channels[1:], strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in config.channels)
        self.to_features = nn.Linear(config.channels[-1] * 9, config.feature_size)
        self.register_buffer("mean", torch.zeros(channels[0], 1, 1))
        self.register_buffer("deviation", torch.ones(channels[0], 1, 1))

    def picture(self, x: Tensor) -> Tensor:
        """What the convolutions see before standardising, `[B, C, H, W]`, no side longer than the config's."""
        x = self.spectrogram(x)
        height, width = x.shape[2:]
        shrink = self.config.longest_side / max(height, width)
        if shrink < 1:
            size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
            x = F.interpolate(x, size=size, mode="area")
        return x

    def standardise_by(self, x: Tensor) -> None:
        """Take mean and deviation of each channel from `x`."""
        picture = self.picture(x)
        self.mean.copy_(picture.mean((0, 2, 3)).view(-1, 1, 1))
        self.deviation.copy_(picture.std((0, 2, 3)).clamp(min=1e-4).view(-1, 1, 1))

    def standardised(self, x: Tensor) -> Tensor:
        """What the convolutions see, `[B, C, H, W]`."""
        return (self.picture(x) - self.mean) / self.deviation

    def embed(self, x: Tensor) -> Tensor:
        """Features `[B, D]`, before any non-linearity."""
        return self.embed_standardised(self.standardised(x))

    def embed_standardised(self, x: Tensor) -> Tensor:
        """Features `[B, D]` of what `standardised` gave."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.silu(norm(convolution(x)))
        features: Tensor = self.to_features(F.adaptive_avg_pool2d(x, 3).flatten(1))
        return features


Network = TypeVar("Network", bound=Encoder)


@contextmanager
def one_thread() -> Iterator[None]:
    """Arithmetic on one thread of a CPU: sums are then of the same order on any machine, whatever its cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_encoder(
    make: Callable[[], Network],
    loss: Callable[[Network, Tensor, Tensor], Tensor],
    layout: Layout,
    arrays: SplitArrays,
    rows: Tensor,
    config: EncoderConfig,
    device: torch.device | str,
    progress: Progress,
    note: str,
) -> Network:
    """Train what `make` makes on `rows` int64 `[N]` of the training split: Adam, cosine, a fixed number of steps, its
    own seed. `loss` takes the network, examples in the model's representation and their rows.

    On one thread: the networks are too small to gain from more, and the weights are then the same on any number of
    cores.
    """
    with one_thread():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "extractor"))
            network = make().to(device)
        generator = make_generator(config.seed, "extractor-order")
        seen = rows[torch.randperm(len(rows), generator=generator)]
        with torch.no_grad():
            network.standardise_by(layout.to_model(arrays.x[seen[:1000]]).to(device))
        optimiser = torch.optim.Adam(network.parameters(), lr=config.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
        network.train()
        for step in range(config.steps):
            chosen = rows[torch.randint(len(rows), (config.batch_size,), generator=generator)]
            value = loss(network, layout.to_model(arrays.x[chosen]).to(device), chosen)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
            progress(STAGE, step + 1, config.steps, note)
    return network.eval()
