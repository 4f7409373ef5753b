"""The variational autoencoder of signals: pictures, waveforms and log-mel spectrograms."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor

from pipeline.data.layout import Layout
from pipeline.models.backbones import SignalBackbone, make_decoder, make_encoder
from pipeline.models.base import LOG_2, Noise, SamplingOptions, Sums, full_precision
from pipeline.models.conditioning import NO_CONDITION
from pipeline.models.likelihoods import DiscretisedLogistic, make_likelihood
from pipeline.models.vae import VariationalAutoencoder
from pipeline.spec import ConditionSpec, VaeSpec


class SignalVae(VariationalAutoencoder):
    """Fully connected, convolutional or residual networks, and one of the likelihoods of `likelihoods.py`."""

    encoder_parameters: ClassVar[tuple[str, ...]] = ("encoder.",)

    def __init__(
        self, layout: Layout, family: VaeSpec, backbone: SignalBackbone, condition: ConditionSpec = NO_CONDITION
    ) -> None:
        super().__init__(layout, family, condition)
        self.encoder = make_encoder(layout.shape, backbone, 2 * family.latent_size, self.condition_size)
        self.decoder = make_decoder(family.latent_size + self.condition_size, backbone, layout.shape)
        kind = family.likelihood or cast("str", layout.likelihood)
        self.likelihood = make_likelihood(kind, layout, family.width == "per_dimension")

    def observe(self, x: Tensor, noise: Noise) -> Tensor:
        if self.family.binarise == "dynamic":
            return (noise.uniform(*x.shape) < x).to(x.dtype)
        if self.family.binarise == "threshold":
            return (x >= 0.5).to(x.dtype)
        return x

    def encode(self, x: Tensor, condition: Tensor | None = None, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        features = self.encoder.features(x)
        if noise is not None and self.training:
            features = noise.dropout(features, self.family.dropout)
        if self.conditioner is not None:
            features = self._behind(features, condition)
        mean, log_variance = full_precision(self.encoder.head(features)).chunk(2, dim=1)
        return mean, log_variance

    def _decoded(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return full_precision(self.decoder(self._behind(z, condition)))

    def log_likelihood(self, x: Tensor, z: Tensor, noise: Noise | None, condition: Tensor | None = None) -> Tensor:
        return self.likelihood.log_prob(self._decoded(z, condition), x)

    def expectation(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x | z, c] `[B, C, *space]`, within the layout's range."""
        return self.likelihood.expectation(self._decoded(z, condition))

    def squared_error(self, x: Tensor, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return (x - self.expectation(z, condition)).square().flatten(1).sum(1)

    def summarise(self, sums: Sums) -> dict[str, float]:
        scores = super().summarise(sums)
        if isinstance(self.likelihood, DiscretisedLogistic):
            scores["bits_per_dimension"] = scores["nll_nats"] / LOG_2 / self.layout.dimensions
        return scores

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x | z, c] `[B, C, *space]`."""
        return self.expectation(z, condition)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> Tensor:
        """E[x | z, c] for z from the prior, its deviation scaled by the temperature: `[count, C, *space]`."""
        return self.expectation(*self._drawn(count, Noise(generator), options))
