"""The variational autoencoder, over signals (MLP or convolutions) and over tokens (recurrent).

One phase. The objective is the evidence lower bound E_q[log p(x|z)] - beta KL(q(z|x) || p(z)) (Kingma and
Welling 2014, eq. 3; Higgins et al. 2017 for beta), with the KL in closed form for diagonal Gaussians. Held-out
likelihood is the importance-weighted bound with L samples (Burda et al. 2016, eq. 8), which tightens with L.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.models.backbones import Carry, Recurrent, SignalBackbone, make_decoder, make_encoder
from pipeline.models.base import (
    Batch,
    GenerativeModel,
    Noise,
    Output,
    Phase,
    SamplingOptions,
    StepContext,
    Sums,
    full_precision,
)
from pipeline.models.conditioning import NO_CONDITION
from pipeline.models.rnn import draw
from pipeline.spec import ConditionSpec, RecurrentBackboneSpec, VaeSpec

ACTIVE_VARIANCE = 0.01
"""A latent unit is active when the variance over examples of its posterior mean is above this (Burda et al.
2016, section 5.3)."""
ROWS_AT_ONCE = 4000
"""Decoded examples held at once while estimating the importance-weighted bound."""


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of every unit, in nats (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)


class VariationalAutoencoder(GenerativeModel):
    """What both views share: posterior, bound and scores. The views give `encode` and `log_likelihood`."""

    def __init__(self, layout: Layout, family: VaeSpec) -> None:
        super().__init__()
        self.layout, self.family = layout, family

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("model", ("",)),)

    def objective(self) -> str:
        return "nll_nats"

    def observe(self, x: Tensor, noise: Noise) -> Tensor:
        """What the likelihood is asked about: `x`, or a binarisation of it."""
        return x

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance `[B, Z]` of the posterior."""
        raise AssertionError("a view of the autoencoder encodes")

    def log_likelihood(self, x: Tensor, z: Tensor, noise: Noise | None) -> Tensor:
        """log p(x | z) in nats `[N]`, for x and z of N rows."""
        raise AssertionError("a view of the autoencoder decodes")

    def squared_error(self, x: Tensor, z: Tensor) -> Tensor:
        """Squared error of the reconstruction, summed over the example `[B]`."""
        raise AssertionError("a view of the autoencoder reconstructs")

    def decode(self, z: Tensor) -> Tensor:
        """Examples in the model's representation for z `[B, Z]`, a function of z alone."""
        raise AssertionError("a view of the autoencoder decodes")

    def forward(self, batch: Batch | None, phase: str, context: StepContext) -> Output:
        assert batch is not None
        x = self.observe(batch.x, context.noise)
        mean, log_variance = self.encode(x)
        z = mean + (0.5 * log_variance).exp() * context.noise.normal(*mean.shape)
        kl_units = kl_to_standard_normal(mean, log_variance)
        reconstruction = -self.log_likelihood(x, z, context.noise)
        kl = kl_units.sum(1)
        charged = kl
        if self.family.free_bits_nats > 0:
            # Per unit and example; Kingma et al. (2016, eq. 15) take the batch's mean, which workers cannot share.
            charged = kl_units.clamp(min=self.family.free_bits_nats).sum(1)
        beta = self.family.beta
        if self.family.kl_warmup > 0:
            beta *= min(1.0, context.progress / self.family.kl_warmup)
        loss = (reconstruction + beta * charged).mean()
        elbo = -(reconstruction + kl).detach().mean()
        return Output(
            loss,
            {"loss": loss.detach(), "elbo_nats": elbo, "kl_nats": kl.detach().mean()},
        )

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise, carry: Carry | None = None) -> tuple[Sums, None]:
        x = self.observe(batch.x, noise)
        mean, log_variance = self.encode(x)
        count, latent = mean.shape
        deviation = (0.5 * log_variance).exp()
        kl = kl_to_standard_normal(mean, log_variance).sum(1)
        total = self.importance_samples
        chunk = max(1, min(total, ROWS_AT_ONCE // count))
        log_weights: list[Tensor] = []
        for start in range(0, total, chunk):
            draws = min(chunk, total - start)
            unit = noise.normal(count * draws, latent).view(count, draws, latent)
            z = mean.unsqueeze(1) + deviation.unsqueeze(1) * unit
            repeated = x.unsqueeze(1).expand(count, draws, *x.shape[1:]).flatten(0, 1)
            log_likelihood = self.log_likelihood(repeated, z.flatten(0, 1), None).view(count, draws)
            # log p(z) - log q(z|x); the constants of the two normals cancel.
            log_ratio = 0.5 * (unit.square() - z.square() + log_variance.unsqueeze(1)).sum(2)
            log_weights.append((log_likelihood + log_ratio).double())
        weights = torch.cat(log_weights, dim=1)  # [B, L]
        sums = {
            "examples": torch.tensor(float(count), dtype=torch.float64),
            "nll": -(weights.logsumexp(1) - math.log(total)).sum(),
            "elbo": weights.mean(1).sum(),
            "kl": kl.double().sum(),
            "squared_error": self.squared_error(x, mean).double().sum(),
            "mean": mean.double().sum(0),
            "mean_squared": mean.double().square().sum(0),
        }
        return {name: value.cpu() for name, value in sums.items()}, None

    def summarise(self, sums: Sums) -> dict[str, float]:
        count = sums["examples"]
        variance = sums["mean_squared"] / count - (sums["mean"] / count).square()
        return {
            "nll_nats": float(sums["nll"] / count),
            "elbo_nats": float(sums["elbo"] / count),
            "kl_nats": float(sums["kl"] / count),
            "reconstruction_mse": float(sums["squared_error"] / count / self.layout.dimensions),
            "active_units": float((variance > ACTIVE_VARIANCE).sum()),
        }

    def vital_signs(self, held_out: Batch, seen: Batch, noise: Noise, progress: float) -> dict[str, Tensor]:
        """How far the annealing of the KL has come; the KL and the active units are among the scores."""
        warmup = self.family.kl_warmup
        return {"kl_weight_share": torch.tensor(1.0 if warmup == 0 else min(1.0, progress / warmup))}


class SignalVae(VariationalAutoencoder):
    """Bernoulli or Gaussian pixels (or samples) given z; the Gaussian has one learned variance."""

    def __init__(
        self, layout: Layout, family: VaeSpec, backbone: SignalBackbone, condition: ConditionSpec = NO_CONDITION
    ) -> None:
        super().__init__(layout, family)
        self.encoder = make_encoder(layout.shape, backbone, 2 * family.latent_size)
        self.decoder = make_decoder(family.latent_size, backbone, layout.shape)
        self.likelihood = family.likelihood or cast("str", layout.likelihood)
        self.log_deviation = nn.Parameter(torch.tensor(-1.0)) if self.likelihood == "gaussian" else None

    def observe(self, x: Tensor, noise: Noise) -> Tensor:
        if self.family.binarise == "dynamic":
            return (noise.uniform(*x.shape) < x).to(x.dtype)
        if self.family.binarise == "threshold":
            return (x >= 0.5).to(x.dtype)
        return x

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = full_precision(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance

    def log_likelihood(self, x: Tensor, z: Tensor, noise: Noise | None) -> Tensor:
        decoded = full_precision(self.decoder(z))
        if self.log_deviation is None:
            # x log p + (1 - x) log(1 - p) with p = sigmoid(decoded), in the form that does not overflow.
            return -F.binary_cross_entropy_with_logits(decoded, x, reduction="none").flatten(1).sum(1)
        error = (x - decoded).flatten(1)
        scaled = error.square().sum(1) * (-2 * self.log_deviation).exp()
        return -0.5 * scaled - error.shape[1] * (self.log_deviation + 0.5 * math.log(2 * math.pi))

    def expectation(self, z: Tensor) -> Tensor:
        """E[x | z] `[B, C, *space]`, within the layout's range."""
        decoded: Tensor = self.decoder(z)
        if self.log_deviation is None:
            return decoded.sigmoid()
        return decoded.clamp(self.layout.low, self.layout.high)

    def squared_error(self, x: Tensor, z: Tensor) -> Tensor:
        return (x - self.expectation(z)).square().flatten(1).sum(1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """E[x | z] `[B, C, *space]`."""
        return self.expectation(z)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> Tensor:
        """E[x | z] for z from the prior, its deviation scaled by the temperature: `[count, C, *space]`."""
        z = Noise(generator).normal(count, self.family.latent_size) * options.temperature
        return self.expectation(z)


class TokenVae(VariationalAutoencoder):
    """A recurrent encoder, and a recurrent decoder that sees z at every step (Bowman et al. 2016)."""

    def __init__(
        self,
        layout: Layout,
        family: VaeSpec,
        backbone: RecurrentBackboneSpec,
        condition: ConditionSpec = NO_CONDITION,
    ) -> None:
        super().__init__(layout, family)
        size, latent = backbone.embedding_size, family.latent_size
        # Two more rows than the vocabulary: the start of an example, and a word that was dropped.
        self.start, self.blank = layout.vocabulary, layout.vocabulary + 1
        self.embedding = nn.Embedding(layout.vocabulary + 2, size)
        self.reader = Recurrent(size, backbone)
        self.posterior = nn.Linear(backbone.hidden_size, 2 * latent)
        self.writer = Recurrent(size + latent, backbone)
        self.initial = nn.Linear(latent, backbone.layers * backbone.hidden_size * self.writer.num_states)
        self.head = nn.Linear(backbone.hidden_size, layout.vocabulary)

    def _counted(self, x: Tensor) -> Tensor:
        return torch.ones_like(x, dtype=torch.bool) if self.layout.pad_token is None else x != self.layout.pad_token

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden, _ = self.reader(self.embedding(x))
        last = self._counted(x).sum(1).clamp(min=1) - 1
        summary = hidden[torch.arange(len(x), device=x.device), last]
        mean, log_variance = full_precision(self.posterior(summary)).chunk(2, dim=1)
        return mean, log_variance

    def _write(self, inputs: Tensor, z: Tensor, carry: Carry | None) -> tuple[Tensor, Carry]:
        if carry is None:
            states = self.initial(z).tanh().view(len(z), self.writer.num_states, -1, self.writer.hidden_size)
            carry = tuple(states.unbind(1))
        along = z.unsqueeze(1).expand(-1, inputs.shape[1], -1)
        hidden, carry = self.writer(torch.cat([self.embedding(inputs), along], dim=2), carry)
        return full_precision(self.head(hidden)), carry

    def log_likelihood(self, x: Tensor, z: Tensor, noise: Noise | None) -> Tensor:
        inputs = torch.cat([torch.full_like(x[:, :1], self.start), x[:, :-1]], dim=1)
        if noise is not None and self.training and self.family.word_dropout > 0:
            inputs = torch.where(noise.uniform(*inputs.shape) < self.family.word_dropout, self.blank, inputs)
        logits, _ = self._write(inputs, z, None)
        nats = F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").view_as(x)
        return -(nats * self._counted(x)).sum(1)

    @torch.no_grad()
    def token_nats(self, x: Tensor) -> Tensor:
        """The surprise at every token of `x` `[B, T]` given those before it and the mean of q(z | x), in nats `[B, T]`,
        NaN at padding; with the KL their sum bounds -log p(x) about as tightly as the evidence lower bound does."""
        z, _ = self.encode(x)
        inputs = torch.cat([torch.full_like(x[:, :1], self.start), x[:, :-1]], dim=1)
        logits, _ = self._write(inputs, z, None)
        nats = F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").view_as(x)
        return nats.masked_fill(~self._counted(x), math.nan)

    def squared_error(self, x: Tensor, z: Tensor) -> Tensor:
        """For tokens: how many are not the likeliest one given those before and z."""
        inputs = torch.cat([torch.full_like(x[:, :1], self.start), x[:, :-1]], dim=1)
        logits, _ = self._write(inputs, z, None)
        return ((logits.argmax(-1) != x) & self._counted(x)).sum(1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Tokens `[B, T]`, the likeliest at every step given z and those before; padded after the end."""
        return self._written(z, lambda logits: logits.argmax(-1))

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> Tensor:
        """Tokens `[count, T]`, drawn step by step given z from the prior; padded after the end."""
        z = Noise(generator).normal(count, self.family.latent_size)
        return self._written(z, lambda logits: draw(logits, generator, options))

    def _written(self, z: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Tokens `[B, T]` for z `[B, Z]`, each chosen `[B]` from its logits `[B, V]`."""
        layout = self.layout
        inputs = torch.full((len(z), 1), self.start, device=z.device)
        ended = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        carry: Carry | None = None
        tokens: list[Tensor] = []
        for _ in range(layout.length):
            logits, carry = self._write(inputs, z, carry)
            token = choose(logits[:, -1])
            if layout.end_token is not None and layout.pad_token is not None:
                token = torch.where(ended, layout.pad_token, token)
                ended |= token == layout.end_token
            tokens.append(token)
            inputs = token.unsqueeze(1)
        return torch.stack(tokens, dim=1)
