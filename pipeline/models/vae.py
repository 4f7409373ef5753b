"""The variational autoencoder: posterior, bound and scores, whatever the view.

One phase, or two with aggressive encoder training. The objective is the evidence lower bound
E_q[log p(x|z)] - beta KL(q(z|x) || p(z)) (Kingma and Welling 2014, eq. 3; Higgins et al. 2017 for beta), with the KL in
closed form between normals, or the importance-weighted bound of k samples (Burda et al. 2016, eq. 8). Held-out
likelihood is that bound with L samples, which tightens with L. With a condition c all of them are given c (Sohn et al.
2015). `vae_signals.py` and `vae_tokens.py` have the two views.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.data.layout import Layout
from pipeline.models.annealing import kl_weight
from pipeline.models.base import (
    Batch,
    GenerativeModel,
    Noise,
    Output,
    Phase,
    SamplingOptions,
    StepContext,
    Sums,
)
from pipeline.models.conditioning import Asked, make_conditioner
from pipeline.models.posterior import Posterior
from pipeline.models.priors import StandardNormal, make_prior
from pipeline.spec import ConditionSpec, VaeSpec

ACTIVE_VARIANCE = 0.01
"""A latent unit is active when the variance over examples of its posterior mean is above this (Burda et al.
2016, section 5.2)."""
ROWS_AT_ONCE = 4000
"""Decoded examples held at once while estimating the importance-weighted bound."""
LATEST_AGGRESSIVE = 0.5
"""The share of the training after which the encoder gets no steps of its own, whatever its information does."""


class VariationalAutoencoder(GenerativeModel):
    """What both views share. The views give `encode`, `log_likelihood` and the way back."""

    encoder_parameters: ClassVar[tuple[str, ...]]
    """Prefixes of the parameters of q(z | x) alone."""
    aggressive: Tensor
    most_information: Tensor

    def __init__(self, layout: Layout, family: VaeSpec, condition: ConditionSpec) -> None:
        super().__init__()
        self.layout, self.family = layout, family
        self.conditioner = make_conditioner(layout, condition)
        self.condition_size = condition.size if condition.on else 0
        self.prior = make_prior(family.prior, family.latent_size, self.condition_size)
        if family.aggressive_steps > 0:
            # Buffers, so that a resumed training goes on as it was.
            self.register_buffer("aggressive", torch.tensor(True))
            self.register_buffer("most_information", torch.tensor(-math.inf))
            self._is_aggressive: bool | None = None
            self.register_load_state_dict_post_hook(_forget)

    # --- what the views give --------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, x: Tensor, condition: Tensor | None = None, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance `[B, Z]` of q(z | x, c); with `noise`, in training, some features are dropped."""

    @abstractmethod
    def log_likelihood(self, x: Tensor, z: Tensor, noise: Noise | None, condition: Tensor | None = None) -> Tensor:
        """log p(x | z, c) in nats `[N]`, for x, z and c of N rows."""

    @abstractmethod
    def squared_error(self, x: Tensor, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Squared error of the reconstruction, summed over the example `[B]`."""

    @abstractmethod
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Examples in the model's representation for z `[B, Z]`, a function of z and c alone."""

    def observe(self, x: Tensor, noise: Noise) -> Tensor:
        """What the likelihood is asked about: `x`, or a binarisation of it."""
        return x

    # --- conditions -----------------------------------------------------------------------------------------------

    def condition_of(self, asked: Asked | Batch, noise: Noise | None = None) -> Tensor | None:
        """The vectors `[B, C]` of what is asked for, None in a model without conditions; with `noise`, in training,
        some are hidden."""
        return None if self.conditioner is None else self.conditioner(asked, noise)

    def _behind(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """What a decoder sees: z `[N, Z]` and c behind it. A conditional model that is told nothing sees the vector of
        the unknown."""
        if self.conditioner is None:
            return z
        if condition is None:
            condition = self.conditioner(Asked(torch.full((len(z),), -1, device=z.device)))
        return torch.cat([z, condition], dim=1)

    def _drawn(self, count: int, noise: Noise, options: SamplingOptions) -> tuple[Tensor, Tensor | None]:
        """Codes `[count, Z]` of the prior, spread by the temperature, and what they are asked for."""
        unit = noise.normal(count, self.family.latent_size) * options.temperature
        condition = None
        if self.conditioner is not None:
            condition = self.conditioner(self.conditioner.asked(count, noise, options))
        return self.prior.draw(unit, condition), condition

    # --- training -------------------------------------------------------------------------------------------------

    def phases(self) -> tuple[Phase, ...]:
        model = Phase("model", ("",))
        if self.family.aggressive_steps == 0:
            return (model,)
        return (Phase("encoder", self.encoder_parameters, repeats=self.family.aggressive_steps), model)

    def takes(self, phase: str, progress: float) -> bool:
        """The encoder has steps of its own as long as they let the codes say more about the examples (He et al. 2019,
        algorithm 1)."""
        if phase == "model" or progress >= LATEST_AGGRESSIVE:
            return phase == "model"
        if self._is_aggressive is None:
            # Once after each validation: reading it from a GPU waits for all that was asked of it.
            self._is_aggressive = bool(self.aggressive)
        return self._is_aggressive

    def heed(self, scores: dict[str, float]) -> None:
        """Aggressive training ends when the mutual information of codes and examples rises no more."""
        if self.family.aggressive_steps == 0:
            return
        information = torch.tensor(scores["information_nats"], device=self.aggressive.device)
        self._is_aggressive = None
        self.aggressive &= information > self.most_information
        self.most_information = torch.maximum(self.most_information, information)

    def objective(self) -> str:
        return "nll_nats"

    def forward(self, batch: Batch | None, phase: str, context: StepContext) -> Output:
        assert batch is not None
        noise, draws = context.noise, self.family.importance_samples
        x = self.observe(batch.x, noise)
        condition = self.condition_of(batch, noise)
        posterior = Posterior(*self.encode(x, condition, noise))
        unit = noise.normal(len(x), draws, self.family.latent_size)
        z = posterior.at(unit).flatten(0, 1)  # [B k, Z]
        repeated, seen = _repeat(x, draws), None if condition is None else _repeat(condition, draws)
        log_likelihood = self.log_likelihood(repeated, z, _NoiseOfDraws(noise, draws), seen).view(-1, draws)
        free = self.family.free_bits_nats
        if draws == 1 and isinstance(self.prior, StandardNormal):
            units = posterior.kl_units()
            kl = units.sum(1, keepdim=True)
            # Per unit and example; Kingma et al. (2016, eq. 15) take the batch's mean, which workers cannot share.
            charged = units.clamp(min=free).sum(1, keepdim=True) if free > 0 else kl
        else:
            kl = posterior.log_prob(unit) - self.prior.log_ratio(z, seen).view(-1, draws)
            charged = kl.clamp(min=free * self.family.latent_size) if free > 0 else kl
        weights = log_likelihood - kl_weight(self.family, context.progress) * charged  # [B, k]
        # Of one weight the logarithm of the summed exponentials is that weight, to the last bit.
        loss = -weights.mean() if draws == 1 else (math.log(draws) - weights.logsumexp(1)).mean()
        elbo = (log_likelihood - kl).detach().mean()
        return Output(loss, {"loss": loss.detach(), "elbo_nats": elbo, "kl_nats": kl.detach().mean()})

    # --- scores ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self, batch: Batch, noise: Noise, carry: tuple[Tensor, ...] | None = None
    ) -> tuple[Sums, tuple[Tensor, ...] | None]:
        x = self.observe(batch.x, noise)
        condition = self.condition_of(batch)
        posterior = Posterior(*self.encode(x, condition))
        count, latent = posterior.mean.shape
        total = self.importance_samples
        chunk = max(1, min(total, ROWS_AT_ONCE // count))
        log_weights: list[Tensor] = []
        divergences: list[Tensor] = []
        for start in range(0, total, chunk):
            draws = min(chunk, total - start)
            unit = noise.normal(count * draws, latent).view(count, draws, latent)
            z = posterior.at(unit)
            seen = None if condition is None else _repeat(condition, draws)
            log_likelihood = self.log_likelihood(_repeat(x, draws), z.flatten(0, 1), None, seen).view(count, draws)
            divergence = posterior.log_prob(unit) - self.prior.log_ratio(z.flatten(0, 1), seen).view(count, draws)
            log_weights.append((log_likelihood - divergence).double())
            divergences.append(divergence.double())
        weights = torch.cat(log_weights, dim=1)  # [B, L]
        normal = isinstance(self.prior, StandardNormal)
        kl = posterior.kl_units().sum(1) if normal else torch.cat(divergences, dim=1).mean(1)
        mean = posterior.mean
        sums = {
            "examples": torch.tensor(float(count), dtype=torch.float64),
            "nll": -(weights.logsumexp(1) - math.log(total)).sum(),
            "elbo": weights.mean(1).sum(),
            "kl": kl.double().sum(),
            "squared_error": self.squared_error(x, mean, condition).double().sum(),
            "mean": mean.double().sum(0),
            "mean_squared": mean.double().square().sum(0),
            "variance": posterior.log_variance.double().exp().sum(0),
            "log_variance": posterior.log_variance.double().sum(0),
        }
        return {name: value.cpu() for name, value in sums.items()}, None

    def summarise(self, sums: Sums) -> dict[str, float]:
        count = sums["examples"]
        variance = sums["mean_squared"] / count - (sums["mean"] / count).square()
        # The entropy of a normal with the moments of all codes, less that of an example's codes, unit by unit.
        together = (variance.clamp(min=0) + sums["variance"] / count).log()
        information = 0.5 * (together - sums["log_variance"] / count).sum()
        return {
            "nll_nats": float(sums["nll"] / count),
            "elbo_nats": float(sums["elbo"] / count),
            "kl_nats": float(sums["kl"] / count),
            "information_nats": float(information),
            "reconstruction_mse": float(sums["squared_error"] / count / self.layout.dimensions),
            "active_units": float((variance > ACTIVE_VARIANCE).sum()),
        }

    def vital_signs(self, held_out: Batch, seen: Batch, noise: Noise, progress: float) -> dict[str, Tensor]:
        """How far the annealing of the KL has come; the KL and the active units are among the scores."""
        return {"kl_weight_share": torch.tensor(self.annealed_share(progress))}

    def annealed_share(self, progress: float) -> float:
        warmup = self.family.kl_warmup
        return 1.0 if warmup == 0 else min(1.0, progress / warmup)


def _forget(model: VariationalAutoencoder, _: object) -> None:
    """Of a model that takes up other buffers."""
    model._is_aggressive = None


class _NoiseOfDraws(Noise):
    """Noise for rows of which each example has `draws` in a row: a worker's slice is of examples, not of rows."""

    def __init__(self, noise: Noise, draws: int) -> None:
        super().__init__(noise.generator, noise.rank, noise.world_size)
        self.noise, self.draws = noise, draws

    def normal(self, *shape: int) -> Tensor:
        return self.noise.normal(shape[0] // self.draws, self.draws, *shape[1:]).flatten(0, 1)

    def uniform(self, *shape: int) -> Tensor:
        return self.noise.uniform(shape[0] // self.draws, self.draws, *shape[1:]).flatten(0, 1)


def _repeat(x: Tensor, draws: int) -> Tensor:
    """Each row of `x` `[B, ...]` `draws` times in a row, `[B draws, ...]`, without a copy where one draw is enough."""
    return x if draws == 1 else x.unsqueeze(1).expand(-1, draws, *x.shape[1:]).flatten(0, 1)
