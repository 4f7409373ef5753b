"""The recurrent language model: next-token prediction with truncated back-propagation through time.

One phase, over text, pictures in raster order and mu-law sound. Continuous text arrives as windows `[B, T + 1]` whose
lanes follow each other, and the state is carried (detached) from step to step (Williams and Peng 1990; Mikolov et
al. 2010). Documents, pictures and sounds arrive as whole examples `[B, T]`, each from an empty state; of long ones a
step reads one window, and the state is carried to the next.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.models.backbones import Carry, Recurrent, TiedHead
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
from pipeline.models.conditioning import NO_CONDITION, hidden_by_row, make_conditioner
from pipeline.models.decoding import draw
from pipeline.models.neighbours import Entry, Neighbours, Readout
from pipeline.spec import ConditionSpec, RecurrentBackboneSpec, RnnSpec

WARM_UP_TOKENS = 64
"""Tokens drawn and thrown away before a sample of continuous text that has no prompt and no documents: the
model never saw a beginning, so it is first brought into the middle of something."""


class RecurrentLanguageModel(GenerativeModel):
    """p(x) = prod_t p(x_t | x_<t), each factor a softmax over the symbols: the vocabulary, or two where pixels are
    drawn black or white."""

    def __init__(
        self,
        layout: Layout,
        family: RnnSpec,
        backbone: RecurrentBackboneSpec,
        condition: ConditionSpec = NO_CONDITION,
    ) -> None:
        super().__init__()
        self.layout, self.family = layout, family
        self.symbols = layout.vocabulary if family.binarise is None else 2
        # One more row than the symbols: what stands before the first token of an example.
        self.start = self.symbols
        size = backbone.embedding_size
        # In frames no single token enters the recurrence.
        self.embedding = nn.Embedding(self.symbols + 1, size) if family.frame == 1 else None
        self.embedding_dropout = backbone.embedding_dropout
        levels = self.symbols if family.binarise or layout.end_token is None else layout.end_token
        sees = layout.modality != "text" and bool(family.history or family.rows_above or family.frame > 1)
        self.neighbours = Neighbours(layout, family, levels) if sees else None
        num_seen = 0 if self.neighbours is None else self.neighbours.count
        self.entry = Entry(layout, family, size, num_seen)
        self.conditioner = make_conditioner(layout, condition)
        self.recurrent = Recurrent(size + (0 if self.conditioner is None else condition.size), backbone)
        self.readout = None
        if family.readout:
            self.readout = Readout(layout, family, backbone.hidden_size, self.symbols, num_seen)
        last = family.readout[-1] if family.readout else backbone.hidden_size
        self.head: nn.Linear | TiedHead
        if family.tied_embeddings and self.embedding is not None:
            self.head = TiedHead(last, size, self.symbols)
            nn.init.normal_(self.embedding.weight, std=size**-0.5)
        else:
            self.head = nn.Linear(last, self.symbols)
        # Pixels are drawn black or white for a whole example at once: its windows must see the same ones.
        windowed = not layout.continuous and family.binarise is None and layout.length > family.window
        self.window = -(-family.window // family.frame) * family.frame if windowed else None

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("model", ("",)),)

    def objective(self) -> str:
        return "nats_per_token"

    # --- what is predicted from what --------------------------------------------------------------------------

    def _sequence(self, x: Tensor) -> Tensor:
        """`x` with what stands before its first target, `[B, S + 1]`: token p + 1 is the target of token p."""
        if self.layout.continuous or self.layout.begin_token is not None:
            return x
        return torch.cat([torch.full_like(x[:, :1], self.start), x], dim=1)

    def _observed(self, x: Tensor, noise: Noise | None) -> Tensor:
        """Tokens as the model's symbols: black or white with the probability of the grey level (at least half of it,
        where there is no noise)."""
        if self.family.binarise is None:
            return x
        grey = x / (self.layout.vocabulary - 1)
        return (grey >= 0.5 if noise is None else noise.uniform(*x.shape) < grey).long()

    def _counts(self, targets: Tensor) -> Tensor:
        """Which targets `[B, T]` are scored: all but padding."""
        if self.layout.pad_token is None or self.layout.continuous:
            return torch.ones_like(targets, dtype=torch.bool)
        return targets != self.layout.pad_token

    def _logits(
        self,
        inputs: Tensor,
        values: Tensor | None,
        positions: Tensor,
        condition: Tensor | None,
        carry: Carry | None,
        noise: Noise | None,
    ) -> tuple[Tensor, Carry]:
        """Logits `[B, W, symbols]` of the tokens after `inputs` `[B, W]`, and the state after them.

        `positions` `[B or 1, W]` are those of the targets, from a frame's first on; `values` those of the whole
        examples (see `Neighbours.values`).
        """
        seen = None if self.neighbours is None or values is None else self.neighbours.seen(values, positions)
        hidden, carry = self._recur(inputs, values, seen, positions, condition, carry, noise)
        risen = hidden if self.readout is None else self.readout.rise(hidden)
        return self._read(risen, inputs, seen, positions), carry

    def _recur(
        self,
        inputs: Tensor,
        values: Tensor | None,
        seen: Tensor | None,
        positions: Tensor,
        condition: Tensor | None,
        carry: Carry | None,
        noise: Noise | None,
    ) -> tuple[Tensor, Carry]:
        """The hidden state for each frame of W tokens, `[B, W / frame, H]`, with `condition` `[B, C]` beside every
        input."""
        frame = self.family.frame
        if frame == 1:
            entered = self.entry(self._embedded(inputs, noise), seen, positions)
        else:
            assert self.neighbours is not None and values is not None
            starts = positions[:, ::frame]
            entered = self.entry(None, self.neighbours.frames(values, starts, frame), starts)
        if condition is not None:
            beside = condition.unsqueeze(1).expand(-1, entered.shape[1], -1)
            entered = torch.cat([entered, beside.to(entered.dtype)], dim=2)
        return self.recurrent(entered, carry, noise)

    def _condition(self, batch: Batch, noise: Noise | None) -> Tensor | None:
        return None if self.conditioner is None else self.conditioner(batch, noise)

    def _read(self, hidden: Tensor, inputs: Tensor, seen: Tensor | None, positions: Tensor) -> Tensor:
        """Logits `[B, W, symbols]` from the state at every token, `[B, W, H]` or as `Readout.rise` gives it."""
        if self.readout is not None:
            hidden = self.readout(hidden, inputs, seen, positions)
        if isinstance(self.head, TiedHead) and self.embedding is not None:
            return full_precision(self.head(hidden, self.embedding.weight[: self.symbols]))
        return full_precision(self.head(hidden))

    def _embedded(self, inputs: Tensor, noise: Noise | None) -> Tensor:
        assert self.embedding is not None
        embedded: Tensor = self.embedding(inputs)
        if noise is None or not self.training or self.embedding_dropout == 0:
            return embedded
        keep = 1 - self.embedding_dropout
        kept = noise.uniform(len(inputs), self.embedding.num_embeddings) < keep
        return embedded * kept.gather(1, inputs).unsqueeze(2) / keep

    # --- training and scores ----------------------------------------------------------------------------------

    def forward(self, batch: Batch | None, phase: str, context: StepContext) -> Output:
        assert batch is not None
        noise, carry = context.noise, context.carry
        if batch.start is not None:
            return self._window_step(batch, batch.start, carry, noise)
        if carry is not None and self.family.state_reset > 0:
            kept = noise.uniform(len(batch), 1, 1) >= self.family.state_reset
            carry = tuple(part * kept for part in carry)
        x, condition = self._observed(batch.x, noise), self._condition(batch, noise)
        nats, counted, carry = self._nats(x, None, condition, carry, noise)
        # Divided by all positions, not by those that count: a constant, so that workers' means add up.
        loss = nats.sum() / nats.numel()
        left = tuple(part.detach() for part in carry) if self.layout.continuous else None
        return Output(loss, {"loss": nats.detach().sum() / counted.sum().clamp(min=1)}, left)

    def _window_step(self, batch: Batch, start: Tensor, carry: Carry | None, noise: Noise) -> Output:
        """A step on one window of each example; the state of a lane that begins an example is empty."""
        x, size, condition = batch.x, len(batch), None
        if self.conditioner is not None:
            # Hidden for all windows of an example alike: the state knows what those before were told.
            hidden = hidden_by_row(batch.index, self.conditioner.spec.dropout if self.training else 0.0)
            condition = self.conditioner(batch, hidden=hidden)
        if carry is not None:
            carry = tuple(part * (start > 0).view(-1, 1, 1) for part in carry)
        rows = torch.arange(size, device=x.device)
        if x.device.type == "cpu" and self.layout.pad_token is not None:
            # Lanes whose example has ended have nothing to learn and cost as much as the others; on a GPU they cost
            # little, and looking for them would stall it.
            going = (x != self.layout.pad_token).sum(1) > start
            if going.any() and not going.all():
                rows = going.nonzero().squeeze(1)
                carry = None if carry is None else tuple(part[rows] for part in carry)
                condition = None if condition is None else condition[rows]
                x, start, noise = x[rows], start[rows], noise.of(rows, size)
        nats, counted, after = self._nats(x, start, condition, carry, noise)
        loss = nats.sum() / (size * nats.shape[1])
        left = [part.new_zeros(size, *part.shape[1:]).index_copy(0, rows, part) for part in (a.detach() for a in after)]
        return Output(loss, {"loss": nats.detach().sum() / counted.sum().clamp(min=1)}, tuple(left))

    def _nats(
        self, x: Tensor, start: Tensor | None, condition: Tensor | None, carry: Carry | None, noise: Noise | None
    ) -> tuple[Tensor, Tensor, Carry]:
        """Nats `[B, W]` of a window's targets from `start` `[B]` on, or of all; zero at those that do not count; which
        do; and the state behind them."""
        sequence = self._sequence(x)
        targets_in_all = sequence.shape[1] - 1
        width = targets_in_all if start is None or self.window is None else self.window
        whole_frames = -(-width // self.family.frame) * self.family.frame
        within = torch.arange(whole_frames, device=x.device).unsqueeze(0)
        unbounded = within if start is None else start.unsqueeze(1) + within
        positions = unbounded.clamp(max=targets_in_all - 1)
        each = positions.expand(len(x), -1)
        inputs, targets = sequence.gather(1, each), sequence.gather(1, each + 1)
        counted = self._counts(targets) & (unbounded < targets_in_all)
        values = None if self.neighbours is None else self.neighbours.values(x)
        logits, carry = self._logits(inputs, values, positions, condition, carry, noise)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        return (nats * counted)[:, :width], counted[:, :width], carry

    @torch.no_grad()
    def _all_nats(self, x: Tensor, condition: Tensor | None, carry: Carry | None) -> tuple[Tensor, Tensor, Carry]:
        """Nats of every target `[B, S]`, which count, and the state behind them; read in windows, whose memory is
        bounded."""
        if self.window is None:
            return self._nats(x, None, condition, carry, None)
        count = self._sequence(x).shape[1] - 1
        nats: list[Tensor] = []
        counted: list[Tensor] = []
        for begin in range(0, count, self.window):
            start = torch.full((len(x),), begin, device=x.device)
            found, which, carry = self._nats(x, start, condition, carry, None)
            nats.append(found)
            counted.append(which)
        assert carry is not None
        return torch.cat(nats, dim=1)[:, :count], torch.cat(counted, dim=1)[:, :count], carry

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise, carry: Carry | None = None) -> tuple[Sums, Carry | None]:
        nats, counted, after = self._all_nats(self._observed(batch.x, noise), self._condition(batch, None), carry)
        sums = {
            "examples": torch.tensor(float(len(batch)), dtype=torch.float64),
            "nats": nats.double().sum().cpu(),
            "tokens": counted.double().sum().cpu(),
        }
        return sums, after if self.layout.continuous else None

    @torch.no_grad()
    def token_nats(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        """The surprise at every token of `x` `[B, T]` given those before it, in nats `[B, T]`; NaN where there is none:
        at padding, and at the first token of a stream or of an example that has a begin token. A model with conditions
        takes those of `batch`, or goes without."""
        unknown = torch.full((len(x),), -1, device=x.device)
        condition = self._condition(batch or Batch(x, unknown, unknown), None)
        nats, counted, _ = self._all_nats(self._observed(x, None), condition, None)
        return F.pad(nats.masked_fill(~counted, math.nan), (x.shape[1] - nats.shape[1], 0), value=math.nan)

    def summarise(self, sums: Sums) -> dict[str, float]:
        mean = float(sums["nats"] / sums["tokens"])
        scores = {"nats_per_token": mean, "perplexity": math.exp(min(mean, 700.0))}
        if self.layout.modality == "image":
            scores["nll_nats"] = float(sums["nats"] / sums["examples"])
        return scores

    # --- samples ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read(self, tokens: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:
        """Logits `[B, V]` of what follows the text `tokens` `[B, T]`, asked for nothing, and the state after reading
        them."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        unknown = torch.full((len(tokens),), -1, device=tokens.device)
        condition = self._condition(Batch(tokens, unknown, unknown), None)
        logits, carry = self._logits(tokens, None, positions, condition, carry, None)
        if self.layout.pad_token is not None:
            logits[:, :, self.layout.pad_token] = -math.inf  # as in `sample`
        return logits[:, -1], carry

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> Tensor:
        """Tokens `[count, length]`, after the prompt; an example that ended is padded."""
        layout, frame, device = self.layout, self.family.frame, self.head.bias.device
        condition = None
        if self.conditioner is not None:
            condition = self.conditioner(self.conditioner.asked(count, Noise(generator), options))
        first, length, dropped = self._beginning(options, generator)
        end, pad = (None, None) if layout.continuous else (layout.end_token, layout.pad_token)
        inputs = torch.tensor(first, device=device).expand(count, -1)
        values = None if self.neighbours is None else torch.zeros(count, layout.length + 1, device=device)
        places = torch.arange(layout.length, device=device).unsqueeze(0)
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        drawn: list[Tensor] = []
        carry: Carry | None = None
        for step in range(length + dropped):
            # Positions matter to pictures and sounds alone, which are drawn from their first token on.
            at = places[:, step : step + 1] if step else places[:, : inputs.shape[1]]
            seen = None if self.neighbours is None or values is None else self.neighbours.seen(values, at)
            if step % frame == 0:
                hidden, carry = self._recur(inputs, values, seen, at, condition, carry, None)
                risen = hidden if self.readout is None else self.readout.rise(hidden)
            now = risen[:, -1:] if frame == 1 else risen[:, step % frame : step % frame + 1]
            logits = self._read(now, inputs[:, -1:], seen, at)[:, -1]
            if pad is not None:
                # Padding was never a target: what the softmax still gives it belongs to the others.
                logits[:, pad] = -math.inf
            token = draw(logits, generator, options)
            if pad is not None:
                token = torch.where(ended, pad, token)
                ended |= token == end
            drawn.append(token)
            # Looking stalls a GPU: now and then.
            if pad is not None and step % 64 == 63 and bool(ended.all()):
                break
            if self.neighbours is not None and values is not None:
                values[:, step] = self.neighbours.values(token.unsqueeze(1))[:, 0]
            inputs = token.unsqueeze(1)
        tokens = torch.stack(drawn[dropped:], dim=1)
        if pad is not None:
            tokens = F.pad(tokens, (0, length - tokens.shape[1]), value=pad)
        return tokens if self.family.binarise is None else tokens * (layout.vocabulary - 1)

    def _beginning(self, options: SamplingOptions, generator: torch.Generator) -> tuple[list[int], int, int]:
        """The tokens that the first is drawn after, how many to draw, and how many more to drop before them."""
        layout = self.layout
        length = options.length or layout.length
        if not layout.continuous:
            begin = layout.begin_token if layout.begin_token is not None else self.start
            whole = layout.length - (layout.begin_token is not None)
            return [begin, *options.prompt], min(length, max(1, whole - len(options.prompt))), 0
        if layout.end_token is not None:
            return [layout.end_token, *options.prompt], length, 0
        if options.prompt:
            return list(options.prompt), length, 0
        return (
            [int(torch.randint(layout.vocabulary, (1,), generator=generator, device=generator.device))],
            length,
            WARM_UP_TOKENS,
        )
