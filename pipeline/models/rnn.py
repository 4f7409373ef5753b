"""The recurrent language model: next-token prediction with truncated back-propagation through time.

One phase. Continuous text arrives as windows `[B, T + 1]` whose lanes follow each other, and the state is
carried (detached) from step to step (Williams and Peng 1990; Mikolov et al. 2010). Documents, raster pictures
and mu-law sound arrive as whole examples `[B, T]`, each from an empty state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.models.backbones import Carry, Recurrent
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
from pipeline.spec import ConditionSpec, RecurrentBackboneSpec, RnnSpec

WARM_UP_TOKENS = 64
"""Tokens drawn and thrown away before a sample of continuous text that has no prompt and no documents: the
model never saw a beginning, so it is first brought into the middle of something."""


class RecurrentLanguageModel(GenerativeModel):
    """p(x) = prod_t p(x_t | x_<t), each factor a softmax over the vocabulary."""

    def __init__(
        self,
        layout: Layout,
        family: RnnSpec,
        backbone: RecurrentBackboneSpec,
        condition: ConditionSpec = NO_CONDITION,
    ) -> None:
        super().__init__()
        self.layout = layout
        embedding_size = backbone.hidden_size if family.tied_embeddings else backbone.embedding_size
        # One more row than the vocabulary: the symbol that stands before the first token of an example.
        self.start = layout.vocabulary
        self.embedding = nn.Embedding(layout.vocabulary + 1, embedding_size)
        self.recurrent = Recurrent(embedding_size, backbone)
        self.head = nn.Linear(backbone.hidden_size, layout.vocabulary)
        if family.tied_embeddings:
            nn.init.normal_(self.embedding.weight, std=backbone.hidden_size**-0.5)
        self.tied = family.tied_embeddings
        self.state_reset = family.state_reset

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("model", ("",)),)

    def objective(self) -> str:
        return "nats_per_token"

    def _logits(self, inputs: Tensor, carry: Carry | None, noise: Noise | None) -> tuple[Tensor, Carry]:
        hidden, carry = self.recurrent(self.embedding(inputs), carry, noise)
        if self.tied:
            return F.linear(hidden, self.embedding.weight[: self.layout.vocabulary], self.head.bias), carry
        return full_precision(self.head(hidden)), carry

    def _inputs_and_targets(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.layout.continuous or self.layout.begin_token is not None:
            return x[:, :-1], x[:, 1:]
        start = torch.full_like(x[:, :1], self.start)
        return torch.cat([start, x[:, :-1]], dim=1), x

    def _nats(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Nats of every target `[B, T]`, zero at padding, and which targets count."""
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        if self.layout.pad_token is None or self.layout.continuous:
            return nats, torch.ones_like(targets, dtype=torch.bool)
        counted = targets != self.layout.pad_token
        return nats * counted, counted

    def forward(self, batch: Batch | None, phase: str, context: StepContext) -> Output:
        assert batch is not None
        inputs, targets = self._inputs_and_targets(batch.x)
        carry = context.carry
        if carry is not None and self.state_reset > 0:
            kept = context.noise.uniform(len(batch), 1, 1) >= self.state_reset
            carry = tuple(part * kept for part in carry)
        logits, carry = self._logits(inputs, carry, context.noise)
        nats, counted = self._nats(logits, targets)
        # Divided by all positions, not by those that count: a constant, so that workers' means add up.
        loss = nats.sum() / nats.numel()
        mean = nats.detach().sum() / counted.sum().clamp(min=1)
        left = tuple(part.detach() for part in carry) if self.layout.continuous else None
        return Output(loss, {"loss": mean}, left)

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise, carry: Carry | None = None) -> tuple[Sums, Carry | None]:
        inputs, targets = self._inputs_and_targets(batch.x)
        logits, after = self._logits(inputs, carry, None)
        nats, counted = self._nats(logits, targets)
        sums = {
            "examples": torch.tensor(float(len(batch)), dtype=torch.float64),
            "nats": nats.double().sum().cpu(),
            "tokens": counted.double().sum().cpu(),
        }
        return sums, after if self.layout.continuous else None

    @torch.no_grad()
    def token_nats(self, x: Tensor) -> Tensor:
        """The surprise at every token of `x` `[B, T]` given those before it, in nats `[B, T]`; NaN where there is none:
        at padding, and at the first token of a stream or of an example that has a begin token."""
        inputs, targets = self._inputs_and_targets(x)
        nats, counted = self._nats(self._logits(inputs, None, None)[0], targets)
        return F.pad(nats.masked_fill(~counted, math.nan), (x.shape[1] - nats.shape[1], 0), value=math.nan)

    def summarise(self, sums: Sums) -> dict[str, float]:
        mean = float(sums["nats"] / sums["tokens"])
        return {"nats_per_token": mean, "perplexity": math.exp(min(mean, 700.0))}

    @torch.no_grad()
    def read(self, tokens: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:
        """Logits `[B, V]` of what follows `tokens` `[B, T]`, and the state that reading them leaves."""
        logits, carry = self._logits(tokens, carry, None)
        return logits[:, -1], carry

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> Tensor:
        """Tokens `[count, length]`, after the prompt; an example that ended is padded."""
        layout = self.layout
        length = options.length or layout.length
        begin = layout.begin_token if layout.begin_token is not None else self.start
        dropped = 0
        if layout.continuous:
            first = list(options.prompt)
            if layout.end_token is not None:
                first = [layout.end_token, *first]
            elif not first:
                drawn = torch.randint(layout.vocabulary, (1,), generator=generator, device=generator.device)
                first, dropped = [int(drawn)], WARM_UP_TOKENS
        else:
            first = [begin, *options.prompt]
            whole = layout.length - (layout.begin_token is not None)
            length = min(length, max(1, whole - len(options.prompt)))
        device = self.head.bias.device
        inputs = torch.tensor(first, device=device).expand(count, -1)
        carry: Carry | None = None
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        drawn_tokens: list[Tensor] = []
        for _ in range(length + dropped):
            logits, carry = self._logits(inputs, carry, None)
            token = draw(logits[:, -1], generator, options)
            if not layout.continuous and layout.end_token is not None and layout.pad_token is not None:
                token = torch.where(ended, layout.pad_token, token)
                ended |= token == layout.end_token
            drawn_tokens.append(token)
            inputs = token.unsqueeze(1)
        return torch.stack(drawn_tokens[dropped:], dim=1)


def draw(logits: Tensor, generator: torch.Generator, options: SamplingOptions) -> Tensor:
    """One token `[B]` from logits `[B, V]` at a temperature, among the `top_k` and within the nucleus `top_p`
    (Holtzman et al. 2020)."""
    logits = logits.float() / options.temperature
    if options.top_k is not None and options.top_k < logits.shape[-1]:
        least = logits.topk(options.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if options.top_p is not None and options.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probability = ordered.softmax(-1)
        outside = probability.cumsum(-1) - probability >= options.top_p
        logits = logits.masked_fill(outside.scatter(1, order, outside), -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
