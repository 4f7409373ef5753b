"""The generative adversarial network: a critic and a generator as two phases, one class for every loss.

With `loss: wasserstein` and a gradient penalty this is WGAN-GP (Gulrajani et al. 2017, algorithm 1). Tokens
are shown to the critic as one-hots `[B, V, T]` and generated as soft ones, so that gradients pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.models.adversarial import LOSSES, gradient_penalty, real_gradient_penalty
from pipeline.models.augmentation import augment
from pipeline.models.backbones import SignalBackbone
from pipeline.models.base import Batch, GenerativeModel, Noise, Output, Phase, SamplingOptions, StepContext, Sums
from pipeline.models.conditioning import NO_CONDITION, PROMPT_PAD, Asked
from pipeline.models.critic import Critic
from pipeline.models.generator import Generator
from pipeline.models.signs import overfit_share, variety, win_share
from pipeline.spec import ConditionSpec, GanSpec, RecurrentBackboneSpec

CRITICS_LEAD = 0.1
"""The share of a generator's pretraining, its last, in which the critic learns already."""


class GenerativeAdversarialNetwork(GenerativeModel):
    """A generator from noise `[B, Z]` to examples and a critic from examples to a score `[B]`."""

    averaged = ("generator.",)

    def __init__(
        self,
        layout: Layout,
        family: GanSpec,
        backbone: SignalBackbone | RecurrentBackboneSpec,
        condition: ConditionSpec = NO_CONDITION,
    ) -> None:
        super().__init__()
        self.layout, self.family, self.condition = layout, family, condition
        shape = layout.shape if layout.view == "signal" else (layout.vocabulary, layout.length)
        self.generator = Generator(shape, layout, family, backbone, condition)
        critic_backbone = family.critic_backbone or backbone
        assert not isinstance(critic_backbone, RecurrentBackboneSpec), "the spec asks for another kind"
        self.critic = Critic(shape, layout, family, critic_backbone, condition)
        self.critic_loss, self.generator_loss = LOSSES[family.loss]
        self.differentiates_within = family.gradient_penalty > 0 or family.real_gradient_penalty > 0

    def phases(self) -> tuple[Phase, ...]:
        family, begins = self.family, self.family.pretraining
        return (
            *([] if begins is None else [Phase("likelihood", ("generator.",), lr_scale=begins.lr_scale)]),
            Phase("critic", ("critic.",), repeats=family.critic_steps, lr_scale=family.critic_lr_scale),
            # Of prompts the layout knows the commonest alone: a generator that is asked for one learns from a batch's.
            Phase("generator", ("generator.",), needs_data="prompt" in self.condition.on),
        )

    def takes(self, phase: str, progress: float) -> bool:
        """A generator that is pretrained learns from its likelihood first, and the critic from the end of that on."""
        if self.family.pretraining is None:
            return True
        share = self.family.pretraining.share
        if phase == "likelihood":
            return progress < share
        return progress >= (share if phase == "generator" else (1 - CRITICS_LEAD) * share)

    def objective(self) -> str:
        return "wasserstein"

    def forward(self, batch: Batch | None, phase: str, context: StepContext) -> Output:
        noise = context.noise
        z = noise.normal(context.batch_size, self.family.latent_size)
        if phase == "generator":
            asked = self._asked(context, batch)
            fake = self.generator(z, asked, noise, context.progress)
            loss = self.generator_loss(self.critic(self._seen(fake, noise), asked, noise))
            return Output(loss, {"generator_loss": loss.detach()})
        assert batch is not None
        asked = self._hidden(Asked(batch.label, batch.prompt), noise)
        if phase == "likelihood":
            loss = self.generator.nats(batch.x, z, asked).mean()
            return Output(loss, {"nats_per_token": loss.detach()})
        with torch.no_grad():
            fake = self.generator(z, asked, noise, context.progress)
        # One pass for both, so that both are changed by one policy.
        real, fake = self._seen(torch.cat([self._real(batch.x), fake]), noise).chunk(2)
        both = Asked(asked.label.repeat(2), None if asked.prompt is None else asked.prompt.repeat(2, 1))
        real_scores, fake_scores = self.critic(torch.cat([real, fake]), both, noise).chunk(2)
        loss = self.critic_loss(real_scores, fake_scores)
        means = {"wasserstein": (real_scores.mean() - fake_scores.mean()).detach()}
        if self.family.gradient_penalty > 0:
            penalty, means["gradient_norm"] = gradient_penalty(
                lambda x: self.critic(x, asked, noise), real, fake, noise.uniform(len(real))
            )
            loss = loss + self.family.gradient_penalty * penalty
        if self.family.real_gradient_penalty > 0:
            penalty = real_gradient_penalty(lambda x: self.critic(x, asked, noise), real)
            loss = loss + self.family.real_gradient_penalty * penalty
        return Output(loss, {"critic_loss": loss.detach(), **means})

    def _real(self, x: Tensor) -> Tensor:
        """Examples of a batch as the critic sees them."""
        if self.layout.view == "signal":
            return x
        return F.one_hot(x, self.layout.vocabulary).transpose(1, 2).to(torch.get_default_dtype())

    def _seen(self, x: Tensor, noise: Noise) -> Tensor:
        return augment(x, self.family.augment, noise, self.layout)

    def _asked(self, context: StepContext, batch: Batch | None) -> Asked | None:
        """What generated examples are asked for: what a batch is, or, in a phase that sees no data, as often as the
        corpus has it."""
        if batch is not None:
            return self._hidden(Asked(batch.label, batch.prompt), context.noise)
        if self.generator.conditioner is None:
            return None
        return self._hidden(self.generator.conditioner.asked(context.batch_size, context.noise), context.noise)

    def _hidden(self, asked: Asked, noise: Noise) -> Asked:
        """Some conditions hidden, with the spec's chance, from generator and critic alike."""
        if self.condition.dropout == 0 or self.generator.conditioner is None:
            return asked
        hidden = noise.uniform(len(asked)) < self.condition.dropout
        label = torch.where(hidden, -1, asked.label)
        if asked.prompt is None:
            return Asked(label)
        return Asked(label, torch.where(hidden.unsqueeze(1), PROMPT_PAD, asked.prompt))

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise, carry: tuple[Tensor, ...] | None = None) -> tuple[Sums, None]:
        asked = Asked(batch.label, batch.prompt)
        real_scores = self.critic(self._real(batch.x), asked)
        fake = self.generator(noise.normal(len(batch), self.family.latent_size), asked, noise)
        sums = {
            "examples": torch.tensor(float(len(batch)), dtype=torch.float64),
            "real_score": real_scores.double().sum().cpu(),
            "fake_score": self.critic(fake, asked).double().sum().cpu(),
        }
        return sums, None

    def summarise(self, sums: Sums) -> dict[str, float]:
        return {"wasserstein": float((sums["real_score"] - sums["fake_score"]) / sums["examples"])}

    def vital_signs(self, held_out: Batch, seen: Batch, noise: Noise, progress: float) -> dict[str, Tensor]:
        """How varied generated examples are beside real ones, and what the critic's scores say; shares of 1."""
        asked, asked_seen = Asked(held_out.label, held_out.prompt), Asked(seen.label, seen.prompt)
        generated = self.generator(noise.normal(len(held_out), self.family.latent_size), asked, noise, progress)
        fake = generated if self.layout.view == "signal" else generated.argmax(1)
        (mean, nearest), (real_mean, real_nearest) = variety(fake), variety(held_out.x)
        seen_scores, fake_scores = self.critic(self._real(seen.x), asked_seen), self.critic(generated, asked)
        held_out_scores = self.critic(self._real(held_out.x), asked)
        signs = {
            "diversity_share": mean / real_mean,
            "nearest_share": nearest / real_nearest,
            "critic_win_share": win_share(seen_scores, fake_scores),
            "critic_overfit_share": overfit_share(seen_scores, held_out_scores, fake_scores),
        }
        if self.layout.view == "signal":
            signs["contrast_share"] = fake.flatten(1).std(1).mean() / held_out.x.flatten(1).std(1).mean()
        return signs

    @torch.no_grad()
    def decode(self, z: Tensor, asked: Asked | None = None) -> Tensor:
        """What the generator makes of z `[B, Z]`: signals `[B, C, *space]`, or the likeliest tokens `[B, T]`.

        Where nothing is asked for, a conditional generator is asked for the first of the corpus's labels.
        """
        if asked is None:
            label = torch.zeros(len(z), dtype=torch.int64, device=z.device)
            asked = Asked(label)
        drawn = self.generator(z, asked)
        return drawn if self.layout.view == "signal" else drawn.argmax(1)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> Tensor:
        """Signals `[count, C, *space]` or tokens `[count, T]`; the temperature scales the noise."""
        noise = Noise(generator)
        z = noise.normal(count, self.family.latent_size) * options.temperature
        conditioner = self.generator.conditioner
        asked = None if conditioner is None else conditioner.asked(count, noise, options)
        drawn = self.generator(z, asked, noise)
        return drawn if self.layout.view == "signal" else drawn.argmax(1)
