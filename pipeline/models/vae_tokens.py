"""The variational autoencoder of tokens: a recurrent network reads, another writes (Bowman et al. 2016)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.models.backbones import Carry, Recurrent
from pipeline.models.base import Noise, SamplingOptions, full_precision
from pipeline.models.conditioning import NO_CONDITION
from pipeline.models.decoding import draw
from pipeline.models.vae import VariationalAutoencoder
from pipeline.spec import ConditionSpec, RecurrentBackboneSpec, VaeSpec


class TokenVae(VariationalAutoencoder):
    """The writer begins in a state made of z and c, and sees them at every step.

    `word_dropout` hides tokens that the writer would see, so that it must ask the code (Bowman et al. 2016, section
    3.1); the backbone's dropout falls on what its layers give, the family's on what is read.
    """

    encoder_parameters: ClassVar[tuple[str, ...]] = ("reader.", "posterior.")

    def __init__(
        self,
        layout: Layout,
        family: VaeSpec,
        backbone: RecurrentBackboneSpec,
        condition: ConditionSpec = NO_CONDITION,
    ) -> None:
        super().__init__(layout, family, condition)
        size, code = backbone.embedding_size, family.latent_size + self.condition_size
        # Two more rows than the vocabulary: the start of an example, and a word that was dropped.
        self.start, self.blank = layout.vocabulary, layout.vocabulary + 1
        self.embedding = nn.Embedding(layout.vocabulary + 2, size)
        self.reader = Recurrent(size, backbone)
        self.posterior = nn.Linear(backbone.hidden_size + self.condition_size, 2 * family.latent_size)
        self.writer = Recurrent(size + code, backbone)
        self.initial = nn.Linear(code, backbone.layers * backbone.hidden_size * self.writer.num_states)
        self.head = nn.Linear(backbone.hidden_size, layout.vocabulary)

    def _counted(self, x: Tensor) -> Tensor:
        return torch.ones_like(x, dtype=torch.bool) if self.layout.pad_token is None else x != self.layout.pad_token

    def encode(self, x: Tensor, condition: Tensor | None = None, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        hidden, _ = self.reader(self.embedding(x), None, noise)
        # The largest of each number over all tokens: states of the last one alone are alike from one text to the next,
        # and the code stays empty (Long et al. 2019).
        summary = hidden.masked_fill(~self._counted(x).unsqueeze(2), -math.inf).amax(1)
        if noise is not None and self.training:
            summary = noise.dropout(summary, self.family.dropout)
        mean, log_variance = full_precision(self.posterior(self._behind(summary, condition))).chunk(2, dim=1)
        return mean, log_variance

    def _write(
        self, inputs: Tensor, code: Tensor, carry: Carry | None, noise: Noise | None = None
    ) -> tuple[Tensor, Carry]:
        """What the writer's layers give `[B, T, H]` after tokens `[B, T]`, for z and c `[B, Z + C]`."""
        if carry is None:
            states = self.initial(code).tanh().view(len(code), self.writer.num_states, -1, self.writer.hidden_size)
            carry = tuple(states.unbind(1))
        along = code.unsqueeze(1).expand(-1, inputs.shape[1], -1)
        return self.writer(torch.cat([self.embedding(inputs), along], dim=2), carry, noise)

    def _shifted(self, x: Tensor) -> Tensor:
        """What the writer sees before each token of x `[B, T]`."""
        return torch.cat([torch.full_like(x[:, :1], self.start), x[:, :-1]], dim=1)

    def _nats(self, x: Tensor, z: Tensor, noise: Noise | None, condition: Tensor | None) -> Tensor:
        """The surprise at every token of x `[B, T]`, in nats, 0 at padding."""
        inputs, counted = self._shifted(x), self._counted(x)
        if noise is not None and self.training and self.family.word_dropout > 0:
            inputs = torch.where(noise.uniform(*inputs.shape) < self.family.word_dropout, self.blank, inputs)
        hidden, _ = self._write(inputs, self._behind(z, condition), None, noise)
        if x.device.type != "cpu":
            # Looking for what counts would stall a GPU.
            nats = F.cross_entropy(full_precision(self.head(hidden)).flatten(0, 1), x.flatten(), reduction="none")
            return nats.view_as(x) * counted
        # Only what counts goes through the head: for sentences of whole words it is most of the work.
        logits = full_precision(self.head(hidden[counted]))
        nats = F.cross_entropy(logits, x[counted], reduction="none")
        return torch.zeros(x.shape, dtype=nats.dtype, device=x.device).masked_scatter(counted, nats)

    def log_likelihood(self, x: Tensor, z: Tensor, noise: Noise | None, condition: Tensor | None = None) -> Tensor:
        return -self._nats(x, z, noise, condition).sum(1)

    @torch.no_grad()
    def token_nats(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The surprise at every token of `x` `[B, T]` given those before it and the mean of q(z | x), in nats `[B, T]`,
        NaN at padding; with the KL their sum bounds -log p(x) about as tightly as the evidence lower bound does."""
        z, _ = self.encode(x, condition)
        return self._nats(x, z, None, condition).masked_fill(~self._counted(x), math.nan)

    def squared_error(self, x: Tensor, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """For tokens: how many are not the likeliest one given those before and z."""
        hidden, _ = self._write(self._shifted(x), self._behind(z, condition), None)
        return ((self.head(hidden).argmax(-1) != x) & self._counted(x)).sum(1)

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Tokens `[B, T]`, the likeliest at every step given z, c and those before; padded after the end."""
        return self._written(self._behind(z, condition), self.layout.length, lambda logits: logits.argmax(-1))

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> Tensor:
        """Tokens `[count, T]`, drawn step by step given z from the prior, at the temperature; padded after the end."""
        # The temperature is that of the words; codes are drawn as the prior has them.
        z, condition = self._drawn(count, Noise(generator), replace(options, temperature=1.0))
        length = min(options.length or self.layout.length, self.layout.length)
        return self._written(self._behind(z, condition), length, lambda logits: draw(logits, generator, options))

    def _written(self, code: Tensor, length: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Tokens `[B, length]` for z and c `[B, Z + C]`, each chosen `[B]` from its logits `[B, V]`."""
        layout = self.layout
        inputs = torch.full((len(code), 1), self.start, device=code.device)
        ended = torch.zeros(len(code), dtype=torch.bool, device=code.device)
        carry: Carry | None = None
        tokens: list[Tensor] = []
        for _ in range(length):
            hidden, carry = self._write(inputs, code, carry)
            token = choose(full_precision(self.head(hidden[:, -1])))
            if layout.end_token is not None and layout.pad_token is not None:
                token = torch.where(ended, layout.pad_token, token)
                ended |= token == layout.end_token
            tokens.append(token)
            inputs = token.unsqueeze(1)
        return torch.stack(tokens, dim=1)
