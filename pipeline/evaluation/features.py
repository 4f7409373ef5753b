"""Features of signals for distances between distributions: a small classifier of the corpus's own labels.

Trained once on the training split of a prepared set (seconds), on any one worker, kept beside the set and found
again by a hash of its configuration. Everybody who measures on that set uses the same weights, whose hash goes
into the protocol of the score. Pictures and log-mel signals are seen as they are; a waveform becomes a log-mel
spectrogram inside the network.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.data.prepared import Prepared, SplitArrays
from pipeline.errors import PreparedDataError
from pipeline.models.base import derive_seed, make_generator
from pipeline.progress import Progress, silent

STAGE = "extractor"


class Extractor(Protocol):
    """Maps examples in the model's representation to features `[N, D]` float64; named, and known by its hash."""

    name: str
    sha256: str
    accuracy: float | None

    def features(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ClassifierConfig:
    """What decides the classifier; a change makes a new one beside the old."""

    version: int = 1
    channels: tuple[int, ...] = (16, 32, 64)
    feature_size: int = 64
    longest_side: int = 48
    num_mels: int = 40
    steps: int = 400
    batch_size: int = 64
    lr: float = 2e-3
    label_smoothing: float = 0.05
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


class Classifier(nn.Module):
    """Convolutions with stride 2, a linear layer to the features, and one to the classes."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, layout: Layout, config: ClassifierConfig) -> None:
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
        self.to_classes = nn.Linear(config.feature_size, len(layout.labels))
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

    def embed(self, x: Tensor) -> Tensor:
        """Features `[B, D]`, before their non-linearity."""
        x = (self.picture(x) - self.mean) / self.deviation
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.silu(norm(convolution(x)))
        features: Tensor = self.to_features(F.adaptive_avg_pool2d(x, 3).flatten(1))
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.to_classes(F.silu(self.embed(x)))
        return logits


class ClassifierExtractor:
    """The penultimate layer of a trained classifier as an `Extractor`."""

    def __init__(self, classifier: Classifier, layout: Layout, name: str, sha256: str, accuracy: float | None) -> None:
        self.classifier, self.layout = classifier.eval(), layout
        self.name, self.sha256, self.accuracy = name, sha256, accuracy

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Features `[N, D]` float64 of examples `[N, C, *space]`, clamped to the layout's range."""
        device = next(self.classifier.parameters()).device
        return self.classifier.embed(x.to(device).clamp(self.layout.low, self.layout.high)).double()


def can_extract(layout: Layout) -> bool:
    """Whether the corpus allows a classifier: signals in one or two dimensions with two labels or more."""
    return layout.view == "signal" and len(layout.labels) >= 2 and len(layout.space) in (1, 2)


def find_or_train_extractor(
    prepared: Prepared,
    held_out: str = "test",
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    config: ClassifierConfig | None = None,
) -> ClassifierExtractor | None:
    """The classifier of a prepared set, trained and kept there at the first call; None where it has no labels.

    Raises: PreparedDataError when the kept one was changed.
    """
    layout, config = prepared.layout, config or ClassifierConfig()
    if not can_extract(layout):
        return None
    name = f"classifier-{config.digest(layout)}"
    weights_path, facts_path = ("extractors", f"{name}.safetensors"), ("extractors", f"{name}.json")
    classifier = Classifier(layout, config)
    if prepared.store.exists(*facts_path):
        facts: dict[str, Any] = prepared.store.read_json(*facts_path)
        data = prepared.store.read_bytes(*weights_path)
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise PreparedDataError(
                f"{prepared.store.path(*weights_path)}: its sha256 is not the one in {name}.json: it was changed. "
                "Delete the folder 'extractors' and evaluate again"
            )
        classifier.load_state_dict(load_tensors(data))
        return ClassifierExtractor(classifier.to(device), layout, name, facts["sha256"], facts["accuracy"])
    classifier = train_classifier(layout, prepared.load_split("train"), config, device, progress)
    accuracy = accuracy_of(classifier, layout, prepared.load_split(held_out), device)
    data = save_tensors({key: value.contiguous().cpu() for key, value in classifier.state_dict().items()})
    sha256 = hashlib.sha256(data).hexdigest()
    prepared.store.write_bytes(data, *weights_path)
    prepared.store.write_json(
        {"sha256": sha256, "accuracy": accuracy, "held_out": held_out, "config": asdict(config)}, *facts_path
    )
    return ClassifierExtractor(classifier, layout, name, sha256, accuracy)


def train_classifier(
    layout: Layout,
    arrays: SplitArrays,
    config: ClassifierConfig,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Classifier:
    """Train on the labelled rows of the training split: Adam, cosine, a fixed number of steps, its own seed.

    On one thread: the network is too small to gain from more, and its weights are then the same on any number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(layout, arrays, config, device, progress)
    finally:
        torch.set_num_threads(threads)


def _train(
    layout: Layout, arrays: SplitArrays, config: ClassifierConfig, device: torch.device | str, progress: Progress
) -> Classifier:
    rows = (arrays.label >= 0).nonzero().squeeze(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "extractor"))
        classifier = Classifier(layout, config).to(device)
    generator = make_generator(config.seed, "extractor-order")
    seen = rows[torch.randperm(len(rows), generator=generator)]
    with torch.no_grad():
        classifier.standardise_by(layout.to_model(arrays.x[seen[:1000]]).to(device))
    optimiser = torch.optim.Adam(classifier.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    classifier.train()
    for step in range(config.steps):
        chosen = rows[torch.randint(len(rows), (config.batch_size,), generator=generator)]
        logits = classifier(layout.to_model(arrays.x[chosen]).to(device))
        loss = F.cross_entropy(logits, arrays.label[chosen].to(device), label_smoothing=config.label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        progress(STAGE, step + 1, config.steps, "a small classifier whose features measure samples")
    return classifier.eval()


@torch.no_grad()
def accuracy_of(
    classifier: Classifier, layout: Layout, arrays: SplitArrays, device: torch.device | str = "cpu"
) -> float | None:
    """Share of the first 2,000 labelled held-out rows classified right; None when no row has a label."""
    rows = (arrays.label >= 0).nonzero().squeeze(1)[:2000]
    if len(rows) == 0:
        return None
    right = 0
    for chosen in rows.split(200):
        guess = classifier(layout.to_model(arrays.x[chosen]).to(device)).argmax(1).cpu()
        right += int((guess == arrays.label[chosen]).sum())
    return right / len(rows)
