"""A small autoencoder of the corpus: its code measures samples where there are no labels to learn from.

Plain PyTorch. Trained on the training split, seconds, on any one worker.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.data.prepared import SplitArrays
from pipeline.evaluation.extractors.encoder import Encoder, EncoderConfig, train_encoder
from pipeline.progress import Progress, silent

NOTE = "a small autoencoder whose code measures samples"


@dataclass(frozen=True)
class AutoencoderConfig(EncoderConfig):
    """What decides the autoencoder."""

    steps: int = 600


class Autoencoder(Encoder):
    """An encoder whose features are the code, and a decoder of upsampling convolutions back to what it sees."""

    def __init__(self, layout: Layout, config: EncoderConfig) -> None:
        super().__init__(layout, config)
        with torch.no_grad():
            channels, height, width = self.picture(torch.zeros(1, *layout.shape)).shape[1:]
        self.size = (height, width)
        factor = 2 ** len(config.channels)
        self.smallest = (config.channels[-1], -(-height // factor), -(-width // factor))
        count = self.smallest[0] * self.smallest[1] * self.smallest[2]
        self.from_features = nn.Linear(config.feature_size, count)
        widths = [*reversed(config.channels), channels]
        self.decoding = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, padding=1)
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )

    def decode(self, features: Tensor) -> Tensor:
        """What the encoder saw, standardised `[B, C, H, W]`, from features `[B, D]`."""
        x = self.from_features(features).unflatten(1, self.smallest)
        for convolution in self.decoding:
            x = convolution(F.interpolate(F.silu(x), scale_factor=2.0, mode="nearest"))
        return x[:, :, : self.size[0], : self.size[1]]

    def forward(self, x: Tensor) -> Tensor:
        """Mean squared error of each example `[B]`, 1 for one that is told as the mean of its channel."""
        seen = self.standardised(x)
        return (self.decode(self.embed_standardised(seen)) - seen).square().flatten(1).mean(1)


class AutoencoderExtractor:
    """The code of a trained autoencoder as an `Extractor`."""

    accuracy = None

    def __init__(self, autoencoder: Autoencoder, layout: Layout, name: str, sha256: str) -> None:
        self.autoencoder, self.layout = autoencoder.eval(), layout
        self.name, self.sha256 = name, sha256

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Features `[N, D]` float64 of examples `[N, C, *space]`, clamped to the layout's range."""
        device = next(self.autoencoder.parameters()).device
        return self.autoencoder.embed(x.to(device).clamp(self.layout.low, self.layout.high)).double()


def train_autoencoder(
    layout: Layout,
    arrays: SplitArrays,
    config: AutoencoderConfig,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Autoencoder:
    """Train on all rows of the training split to tell what the encoder sees with the least squared error."""

    def loss(autoencoder: Autoencoder, x: Tensor, rows: Tensor) -> Tensor:
        return autoencoder(x).mean()

    rows = torch.arange(len(arrays))
    return train_encoder(
        lambda: Autoencoder(layout, config), loss, layout, arrays, rows, config, device, progress, NOTE
    )
