"""The generative adversarial network: a critic and a generator as two phases, one class for every loss.

With `loss: wasserstein` and a gradient penalty this is WGAN-GP (Gulrajani et al. 2017, algorithm 1). Tokens
are shown to the critic as one-hots `[B, V, T]` and generated as soft ones, so that gradients pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.models.backbones import SignalBackbone, make_decoder, make_encoder
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
from pipeline.models.signs import overfit_share, variety, win_share
from pipeline.spec import ConditionSpec, GanSpec

CriticLoss = Callable[[Tensor, Tensor], Tensor]
GeneratorLoss = Callable[[Tensor], Tensor]


def _entropy_critic(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


LOSSES: dict[str, tuple[CriticLoss, GeneratorLoss]] = {
    # Arjovsky et al. 2017, eq. 2
    "wasserstein": (lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()),
    # Goodfellow et al. 2014, eq. 1, on logits
    "minimax": (_entropy_critic, lambda fake: -F.softplus(fake).mean()),
    # Goodfellow et al. 2014, section 3
    "non_saturating": (_entropy_critic, lambda fake: F.softplus(-fake).mean()),
    # Mao et al. 2017, eq. 9
    "least_squares": (
        lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
        lambda fake: 0.5 * (fake - 1).square().mean(),
    ),
    # Lim and Ye 2017, eq. 3
    "hinge": (lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda fake: -fake.mean()),
}


class GenerativeAdversarialNetwork(GenerativeModel):
    """A generator from noise `[B, Z]` to examples and a critic from examples to a score `[B]`."""

    averaged = ("generator.",)

    def __init__(
        self, layout: Layout, family: GanSpec, backbone: SignalBackbone, condition: ConditionSpec = NO_CONDITION
    ) -> None:
        super().__init__()
        self.layout, self.family = layout, family
        shape = layout.shape if layout.view == "signal" else (layout.vocabulary, layout.length)
        self.generator = make_decoder(family.latent_size, backbone, shape)
        self.critic = make_encoder(shape, backbone, 1)
        self.critic_loss, self.generator_loss = LOSSES[family.loss]

    def phases(self) -> tuple[Phase, ...]:
        family = self.family
        return (
            Phase("critic", ("critic.",), repeats=family.critic_steps, lr_scale=family.critic_lr_scale),
            Phase("generator", ("generator.",), needs_data=False),
        )

    def objective(self) -> str:
        return "wasserstein"

    def _real(self, x: Tensor) -> Tensor:
        if self.layout.view == "signal":
            return x
        return F.one_hot(x, self.layout.vocabulary).transpose(1, 2).to(torch.get_default_dtype())

    def generate(self, z: Tensor) -> Tensor:
        """Examples as the critic sees them: signals within the layout's range, or soft one-hots `[B, V, T]`."""
        drawn = full_precision(self.generator(z))
        if self.layout.view == "tokens":
            return drawn.softmax(1)
        low, high = self.layout.low, self.layout.high
        return low + (high - low) * 0.5 * (1 + drawn.tanh())

    def score(self, x: Tensor) -> Tensor:
        """The critic's score of each example, `[B]`."""
        return full_precision(self.critic(x)).squeeze(1)

    def forward(self, batch: Batch | None, phase: str, context: StepContext) -> Output:
        z = context.noise.normal(context.batch_size, self.family.latent_size)
        if phase == "generator":
            loss = self.generator_loss(self.score(self.generate(z)))
            return Output(loss, {"generator_loss": loss.detach()})
        assert batch is not None
        real = self._real(batch.x)
        with torch.no_grad():
            fake = self.generate(z)
        real_scores, fake_scores = self.score(torch.cat([real, fake])).chunk(2)
        loss = self.critic_loss(real_scores, fake_scores)
        means = {"wasserstein": (real_scores.mean() - fake_scores.mean()).detach()}
        if self.family.gradient_penalty > 0:
            penalty, norm = self._penalty(real, fake, context.noise)
            loss = loss + self.family.gradient_penalty * penalty
            means["gradient_norm"] = norm
        return Output(loss, {"critic_loss": loss.detach(), **means})

    def _penalty(self, real: Tensor, fake: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """E[(||grad D(x)|| - 1)^2] on straight lines between real and fake (Gulrajani et al. 2017, eq. 3)."""
        share = noise.uniform(len(real), *[1] * (real.dim() - 1))
        between = (share * real + (1 - share) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(self.score(between).sum(), between, create_graph=True)
        norm = gradient.flatten(1).square().sum(1).add(1e-12).sqrt()
        return (norm - 1).square().mean(), norm.detach().mean()

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise, carry: tuple[Tensor, ...] | None = None) -> tuple[Sums, None]:
        real_scores = self.score(self._real(batch.x))
        fake_scores = self.score(self.generate(noise.normal(len(batch), self.family.latent_size)))
        sums = {
            "examples": torch.tensor(float(len(batch)), dtype=torch.float64),
            "real_score": real_scores.double().sum().cpu(),
            "fake_score": fake_scores.double().sum().cpu(),
        }
        return sums, None

    def summarise(self, sums: Sums) -> dict[str, float]:
        return {"wasserstein": float((sums["real_score"] - sums["fake_score"]) / sums["examples"])}

    def vital_signs(self, held_out: Batch, seen: Batch, noise: Noise, progress: float) -> dict[str, Tensor]:
        """How varied generated examples are beside real ones, and what the critic's scores say; shares of 1."""
        z = noise.normal(len(held_out), self.family.latent_size)
        generated = self.generate(z)
        fake = generated if self.layout.view == "signal" else generated.argmax(1)
        (mean, nearest), (real_mean, real_nearest) = variety(fake), variety(held_out.x)
        seen_scores, fake_scores = self.score(self._real(seen.x)), self.score(generated)
        signs = {
            "diversity_share": mean / real_mean,
            "nearest_share": nearest / real_nearest,
            "critic_win_share": win_share(seen_scores, fake_scores),
            "critic_overfit_share": overfit_share(seen_scores, self.score(self._real(held_out.x)), fake_scores),
        }
        if self.layout.view == "signal":
            signs["contrast_share"] = fake.flatten(1).std(1).mean() / held_out.x.flatten(1).std(1).mean()
        return signs

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """What the generator makes of z `[B, Z]`: signals `[B, C, *space]`, or the likeliest tokens `[B, T]`."""
        drawn = self.generate(z)
        return drawn if self.layout.view == "signal" else drawn.argmax(1)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> Tensor:
        """Signals `[count, C, *space]` or tokens `[count, T]`; the temperature scales the noise."""
        return self.decode(Noise(generator).normal(count, self.family.latent_size) * options.temperature)
