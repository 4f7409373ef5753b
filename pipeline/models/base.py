"""The one contract between a generative model and everything around it: phases, forward, sample, evaluate.

Plain PyTorch. The loop, the evaluation and the generation know a model by this file alone, so a new family is
one more subclass of `GenerativeModel` and one line in `FAMILIES` (`pipeline/models/__init__.py`).
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.data.layout import Layout


@dataclass(frozen=True)
class Phase:
    """A group of parameters that one optimiser steps.

    `parameters` are prefixes of parameter names. In each training step the phase runs `repeats` times, each on
    a fresh batch when it `needs_data`; a phase without data draws everything from noise. Its learning rate is the
    schedule's times `lr_scale`.
    """

    name: str
    parameters: tuple[str, ...]
    repeats: int = 1
    needs_data: bool = True
    lr_scale: float = 1.0


@dataclass
class Batch:
    """Examples in the model's representation.

    `x`: signals, floats `[B, C, *space]`; or tokens, int64 `[B, T]` (`[B, T + 1]` for continuous text, where the
    last token is the first of the next window). `label`: int64 `[B]`, -1 where unknown. `index`: int64 `[B]`,
    the row of each example in its split. `prompt`: the tokens of each example's text prompt, int64 `[B, P]`, where the
    set has prompts. `start`: int64 `[B]`, where the window of `x` begins that this step is about (see `window` of the
    model), None for all of `x`.
    """

    x: Tensor
    label: Tensor
    index: Tensor
    prompt: Tensor | None = None
    start: Tensor | None = None

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def of(self, rows: Tensor) -> Batch:
        """The examples at the places int64 `[R]` of this batch."""
        prompt = None if self.prompt is None else self.prompt.index_select(0, rows)
        start = None if self.start is None else self.start.index_select(0, rows)
        x, label, index = (values.index_select(0, rows) for values in (self.x, self.label, self.index))
        return Batch(x, label, index, prompt, start)


class Noise:
    """Random numbers for the whole global batch, of which this rank takes its slice.

    Drawing for the global batch and slicing makes an example's noise a function of (seed, step, position) and
    not of the number of workers: two workers of batch B see what one of 2 B sees.
    """

    def __init__(self, generator: torch.Generator, rank: int = 0, world_size: int = 1) -> None:
        self.generator, self.rank, self.world_size = generator, rank, world_size

    def _slice(self, drawn: Tensor) -> Tensor:
        return drawn if self.world_size == 1 else drawn[self.rank :: self.world_size]

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * self.world_size, *shape[1:])

    def normal(self, *shape: int) -> Tensor:
        """Standard normal floats of `shape`, the first dimension being this rank's batch."""
        device = self.generator.device
        return self._slice(torch.randn(self._shape(shape), generator=self.generator, device=device))

    def uniform(self, *shape: int) -> Tensor:
        """Floats in [0, 1) of `shape`, the first dimension being this rank's batch."""
        device = self.generator.device
        return self._slice(torch.rand(self._shape(shape), generator=self.generator, device=device))

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """Inverted dropout (Srivastava et al. 2014) of `x` `[B, ...]` whose mask comes from this noise."""
        if probability == 0:
            return x
        keep = 1 - probability
        return x * (self.uniform(*x.shape) < keep) / keep

    def of(self, rows: Tensor, batch_size: int) -> Noise:
        """The same noise for some `rows` int64 `[R]` of this rank's batch: drawn for all of it, so that which rows they
        are changes nothing for the others."""
        return _NoiseOfRows(self, rows, batch_size)


class _NoiseOfRows(Noise):
    """Of a draw for R rows; or for a multiple of R, where rows of several kinds, such as real and generated ones, lie
    behind each other."""

    def __init__(self, whole: Noise, rows: Tensor, batch_size: int) -> None:
        super().__init__(whole.generator, whole.rank, whole.world_size)
        self.whole, self.rows, self.batch_size = whole, rows, batch_size

    def _slice(self, drawn: Tensor) -> Tensor:
        drawn = self.whole._slice(drawn)
        kinds = drawn.unflatten(0, (-1, self.batch_size))  # [kinds, B, ...]
        return kinds.index_select(1, self.rows).flatten(0, 1)

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        kinds, rest = divmod(shape[0], len(self.rows))
        assert rest == 0, f"noise for {shape[0]} rows is not for a multiple of {len(self.rows)}"
        return self.whole._shape((kinds * self.batch_size, *shape[1:]))


@dataclass
class StepContext:
    """What a forward pass may know of the training around it.

    `batch_size` is that of the pass: this rank's, or a micro-batch of it; `progress` the share of the training done, in
    [0, 1]; `carry` the recurrent state `[B, layers, H]` (one tensor for a GRU, two for an LSTM) that the previous step
    left for these lanes, or None at a start.
    """

    noise: Noise
    batch_size: int
    progress: float = 0.0
    carry: tuple[Tensor, ...] | None = None


@dataclass
class Output:
    """The loss to descend, a mean over the examples of the pass, and detached named means to report.

    A mean, not another statistic of them: weighted by their sizes, the losses of parts of a batch must add up to that
    of the whole, or neither workers nor micro-batches are the same training.
    """

    loss: Tensor
    means: dict[str, Tensor] = field(default_factory=dict)
    carry: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class SamplingOptions:
    """How to draw: `temperature` > 0, and for tokens nucleus and top-k cuts and an encoded prompt that is continued.

    A model with conditions is asked for a label (`asked_label`, one for all samples or one for each) and for what a
    text prompt says (`asked_prompt`, its encoded tokens, likewise); what is not asked for is drawn as often as the
    corpus has it.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    prompt: tuple[int, ...] = ()
    length: int | None = None
    asked_label: int | tuple[int, ...] | None = None
    asked_prompt: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None


def full_precision(x: Tensor) -> Tensor:
    """What a network gave, in float32 where it computed with half as many bits: losses are taken of that."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


Sums = dict[str, Tensor]
"""Named float64 sums (and counts) over examples; those of two workers, or of two batches, are added."""


class GenerativeModel(nn.Module, ABC):
    """A family's objective over a backbone built from a `Layout`."""

    layout: Layout
    importance_samples: int = 1
    """L of the importance-weighted bound in `evaluate`, for families that have one."""
    window: int | None = None
    """Tokens of an example that a training step reads, the carried state going on with the next; None for all."""
    differentiates_within: bool = False
    """Whether `forward` takes derivatives of its networks itself, through which the loss is differentiated again."""
    averaged: tuple[str, ...] = ("",)
    """Prefixes of the parameters whose moving average is used for scores and samples."""

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """The parameter groups, in the order in which a training step runs them."""

    def takes(self, phase: str, progress: float) -> bool:
        """Whether a step at this progress, in [0, 1], runs the phase; its batches are passed over where it does not."""
        return True

    def heed(self, scores: dict[str, float]) -> None:
        """Look at the scores of a validation, which are the same on all ranks; what a model learns of them is in its
        buffers."""

    @abstractmethod
    def forward(self, batch: Batch | None, phase: str, context: StepContext) -> Output:
        """The loss of `phase` on this rank's batch (None for a phase that needs no data)."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> Tensor:
        """`count` examples in the model's representation, drawn with `generator` alone: the same seed, the same."""

    @abstractmethod
    def evaluate(
        self, batch: Batch, noise: Noise, carry: tuple[Tensor, ...] | None = None
    ) -> tuple[Sums, tuple[Tensor, ...] | None]:
        """Sums over the examples of a held-out batch, and the recurrent state it leaves.

        Every family gives `examples`; the other names are the family's own, and `summarise` turns the sums of
        all batches of all workers into scores.
        """

    @abstractmethod
    def summarise(self, sums: Sums) -> dict[str, float]:
        """Scores from the sums over the whole split, under their metric keys without the split's prefix."""

    @abstractmethod
    def objective(self) -> str:
        """The score (lower is better) that validation, tuning and release compare; a key of `summarise`."""

    def vital_signs(self, held_out: Batch, seen: Batch, noise: Noise, progress: float) -> dict[str, Tensor]:
        """Scalars on a fixed batch of held-out examples and one of training examples, with the same noise every time,
        by which `training/health.py` judges whether the training is healthy; none by default.

        Called without gradients, in evaluation mode, when `progress` (in [0, 1]) of the training is done.
        """
        return {}

    def annealed_share(self, progress: float) -> float:
        """How far the annealing of terms of the loss has come, from 0 to 1, when `progress` (in [0, 1]) of the training
        is done; before 1 the loss may rise by it. 1 where nothing is annealed."""
        return 1.0

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())


def derive_seed(seed: int, stream: str, *counters: int) -> int:
    """A 63-bit seed for a named stream of randomness, a function of the arguments alone.

    Streams with different names or counters are independent for every practical purpose (SHA-256).
    """
    text = ":".join([str(seed), stream, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(seed: int, stream: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` seeded by `derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, stream, *counters))


LOG_2 = math.log(2.0)
"""Nats in a bit."""
