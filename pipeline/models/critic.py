"""The critic of a GAN: features of an example, their score, and how well they fit what was asked for.

Plain PyTorch. The features come from a signal encoder; tokens are seen as one-hots `[B, V, T]`, real ones hard,
generated ones soft.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.data.layout import Layout
from pipeline.models.backbones import SignalBackbone, make_encoder
from pipeline.models.base import Noise, full_precision
from pipeline.models.conditioning import Asked, make_conditioner
from pipeline.models.residual import ResidualBlock
from pipeline.models.spectral import normalise_spectra
from pipeline.spec import ConditionSpec, GanSpec


class Critic(nn.Module):
    """From examples `[B, *shape]` to scores `[B]`: w . f(x) + b, and (V c) . f(x) where c is the vector of what was
    asked for: the projection critic (Miyato and Koyama 2018, eq. 3)."""

    def __init__(
        self,
        shape: Sequence[int],
        layout: Layout,
        family: GanSpec,
        backbone: SignalBackbone,
        condition: ConditionSpec,
    ) -> None:
        super().__init__()
        self.phase_shuffle = family.phase_shuffle
        self.encoder = make_encoder(shape, backbone, 1)
        self.conditioner = make_conditioner(layout, condition)
        if self.conditioner is not None:
            self.projection = nn.Linear(condition.size, self.encoder.num_features, bias=False)
        self._shuffled = _ends_of_levels(self.encoder.body)[:-1] if family.phase_shuffle else []
        if family.spectral_norm:
            normalise_spectra(self)

    def forward(self, x: Tensor, asked: Asked | None = None, noise: Noise | None = None) -> Tensor:
        """The scores `[B]`; `noise` is needed in training, where the family shuffles phases."""
        hidden = self._features(x, noise) if self.training and self._shuffled else self.encoder.features(x)
        score = self.encoder.head(hidden)
        if self.conditioner is not None:
            assert asked is not None
            score = score + (self.projection(self.conditioner(asked)) * hidden).sum(1, keepdim=True)
        return full_precision(score).squeeze(1)

    def _features(self, x: Tensor, noise: Noise | None) -> Tensor:
        assert noise is not None, "phases are shuffled by the step's noise"
        for place, layer in enumerate(self.encoder.body.children()):
            x = layer(x)
            if place in self._shuffled:
                x = shuffle_phase(x, self.phase_shuffle, noise)
        return x.flatten(1)


def shuffle_phase(x: Tensor, most: int, noise: Noise) -> Tensor:
    """Activations `[B, C, T]`, each example's moved by a whole number of samples drawn from [-most, most]; what is
    missing at an edge is its reflection (Donahue et al. 2019, section 3.3).

    It hides from a critic the exact phase of the artefacts that transposed convolutions leave.
    """
    length = x.shape[2]
    most = min(most, length - 1)
    steps = (noise.uniform(len(x), 1, 1) * (2 * most + 1)).floor().long() - most
    places = (torch.arange(length, device=x.device) - steps).abs()  # [B, 1, T]
    places = torch.where(places >= length, 2 * (length - 1) - places, places)
    return x.gather(2, places.expand(-1, x.shape[1], -1))


def _ends_of_levels(body: nn.Module) -> list[int]:
    """The places in a convolutional body after which an activation of a level stands."""
    layers = list(body.children())
    blocks = [place for place, layer in enumerate(layers) if isinstance(layer, ResidualBlock)]
    return blocks or [place + 1 for place, layer in enumerate(layers) if isinstance(layer, nn.Conv1d)]
