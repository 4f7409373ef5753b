"""The corpus's own classifier: its features measure samples, its classes say what samples are of.

Plain PyTorch. Trained on the labelled rows of the training split, seconds, on any one worker.
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

NOTE = "a small classifier whose features measure samples"


@dataclass(frozen=True)
class ClassifierConfig(EncoderConfig):
    """What decides the classifier."""

    label_smoothing: float = 0.05


class Classifier(Encoder):
    """An encoder and a linear layer to the classes."""

    def __init__(self, layout: Layout, config: EncoderConfig) -> None:
        super().__init__(layout, config)
        self.to_classes = nn.Linear(config.feature_size, len(layout.labels))

    def classify(self, features: Tensor) -> Tensor:
        """Logits `[B, K]` of features `[B, D]`."""
        logits: Tensor = self.to_classes(F.silu(features))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.embed(x))


class ClassifierExtractor:
    """The penultimate layer of a trained classifier as an `Extractor`, with the logits of its classes."""

    def __init__(self, classifier: Classifier, layout: Layout, name: str, sha256: str, accuracy: float | None) -> None:
        self.classifier, self.layout = classifier.eval(), layout
        self.name, self.sha256, self.accuracy = name, sha256, accuracy

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Features `[N, D]` float64 of examples `[N, C, *space]`, clamped to the layout's range."""
        return self.classifier.embed(x.to(self._device).clamp(self.layout.low, self.layout.high)).double()

    @torch.no_grad()
    def logits_of(self, features: Tensor) -> Tensor:
        """Class logits `[N, K]` float64 of what `features` gave."""
        return self.classifier.classify(features.to(self._device, torch.float32)).double()

    @property
    def _device(self) -> torch.device:
        return next(self.classifier.parameters()).device


def train_classifier(
    layout: Layout,
    arrays: SplitArrays,
    config: ClassifierConfig,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Classifier:
    """Train on the labelled rows of the training split."""
    labels = arrays.label.to(device)

    def loss(classifier: Classifier, x: Tensor, rows: Tensor) -> Tensor:
        return F.cross_entropy(classifier(x), labels[rows.to(device)], label_smoothing=config.label_smoothing)

    rows = (arrays.label >= 0).nonzero().squeeze(1)
    return train_encoder(lambda: Classifier(layout, config), loss, layout, arrays, rows, config, device, progress, NOTE)


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
