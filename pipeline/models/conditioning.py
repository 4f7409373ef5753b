"""What a sample is asked for, as one vector beside the example or the noise: the same module in every family.

Plain PyTorch. A label is embedded; a text prompt, the bytes of a codec, is read by a small recurrent network. Families
hold a `Conditioner` for each network that must know (a generator and its critic have one each) and concatenate its
vector to what that network sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.data.layout import Layout
from pipeline.data.prompts import PROMPT_PAD, PROMPT_VOCABULARY, encode_prompts
from pipeline.models.base import Batch, Noise, SamplingOptions
from pipeline.models.recurrence import run_recurrent
from pipeline.spec import ConditionSpec

PROMPT_EMBEDDING = 32

NO_CONDITION = ConditionSpec()
"""Nothing is asked for."""


@dataclass(frozen=True)
class Asked:
    """What each of B samples is asked for: `label` int64 `[B]`, -1 for nothing, and `prompt` int64 `[B, P]` or None."""

    label: Tensor
    prompt: Tensor | None = None

    def __len__(self) -> int:
        return int(self.label.shape[0])


class Conditioner(nn.Module):
    """From labels `[B]` and prompts `[B, P]` to vectors `[B, size]`; the unknown and hidden have one of their own."""

    _label_share: Tensor
    _prompt_share: Tensor
    _prompts: Tensor | None

    def __init__(self, layout: Layout, spec: ConditionSpec) -> None:
        super().__init__()
        self.spec, self.size = spec, spec.size
        self.num_labels, self.num_prompts = len(layout.labels), len(layout.prompts)
        self.on_label, self.on_prompt = "label" in spec.on, "prompt" in spec.on
        if self.on_label:
            # The last row is for an example whose label is unknown or hidden.
            self.label = nn.Embedding(self.num_labels + 1, spec.size)
        if self.on_prompt:
            self.tokens = nn.Embedding(PROMPT_VOCABULARY, PROMPT_EMBEDDING, padding_idx=PROMPT_PAD)
            self.reader = nn.GRU(PROMPT_EMBEDDING, spec.size, batch_first=True)
            self.no_prompt = nn.Parameter(torch.zeros(spec.size))
        # What is drawn from where nothing is asked for: constants of the corpus, not weights.
        # On the model's device: from the host's memory every draw would wait for a GPU.
        self.register_buffer("_label_share", _shares(layout.label_counts, self.num_labels), persistent=False)
        self.register_buffer("_prompt_share", _shares(layout.prompt_counts, self.num_prompts), persistent=False)
        self.register_buffer("_prompts", _encoded(layout) if self.on_prompt else None, persistent=False)

    def forward(self, asked: Asked | Batch, noise: Noise | None = None, hidden: Tensor | None = None) -> Tensor:
        """The vectors `[B, size]`. With `noise`, in training, conditions are hidden with the spec's chance, or where
        `hidden` `[B]` says so; the label and the prompt of an example together."""
        count = len(asked.label)
        if hidden is None:
            hidden = torch.zeros(count, dtype=torch.bool, device=asked.label.device)
            if noise is not None and self.training and self.spec.dropout > 0:
                hidden = noise.uniform(count) < self.spec.dropout
        vectors: list[Tensor] = []
        if self.on_label:
            unknown = hidden | (asked.label < 0) | (asked.label >= self.num_labels)
            vectors.append(self.label(torch.where(unknown, self.num_labels, asked.label)))
        if self.on_prompt:
            vectors.append(self._read(asked.prompt, hidden))
        return torch.stack(vectors).sum(0)

    def _read(self, prompt: Tensor | None, hidden: Tensor) -> Tensor:
        """The reader's state after each prompt's last token, `[B, size]`."""
        nothing = self.no_prompt.expand(len(hidden), -1)
        if prompt is None:
            return nothing
        states, _ = run_recurrent(self.reader, self.tokens(prompt))
        lengths = (prompt != PROMPT_PAD).sum(1)
        last = states[torch.arange(len(prompt), device=prompt.device), lengths.clamp(min=1) - 1]
        return torch.where((hidden | (lengths == 0)).unsqueeze(1), nothing, last.to(nothing.dtype))

    def asked(self, count: int, noise: Noise, options: SamplingOptions | None = None) -> Asked:
        """What `count` samples are asked for: by `options`, else drawn as often as the corpus has it."""
        options = options or SamplingOptions()
        device = noise.generator.device
        label = torch.full((count,), -1, device=device)
        if self.on_label and options.asked_label is not None:
            label = torch.as_tensor(options.asked_label, device=device).expand(count).clone()
        elif self.on_label and self.num_labels:
            label = _drawn(self._label_share, noise.uniform(count))
        prompt: Tensor | None = None
        if self.on_prompt and options.asked_prompt is not None:
            prompt = torch.tensor(options.asked_prompt, device=device).expand(count, -1)
        elif self.on_prompt and self._prompts is not None and self.num_prompts:
            prompt = self._prompts[_drawn(self._prompt_share, noise.uniform(count))]
        return Asked(label, prompt)


def hidden_by_row(index: Tensor, share: float) -> Tensor:
    """About `share` of the rows `index` int64 `[B]`, always the same ones: whose condition is hidden where an example
    is seen in parts, of which all must agree. Knuth's multiplicative hash spreads them."""
    return (index * 2654435761 % 2**32).double() < share * 2**32


def make_conditioner(layout: Layout, spec: ConditionSpec) -> Conditioner | None:
    """A new conditioner, or None where the spec conditions on nothing."""
    return Conditioner(layout, spec) if spec.on else None


def _shares(counts: tuple[int, ...], number: int) -> Tensor:
    """Upper ends of each choice's share of [0, 1], float64 `[number]`; equal shares where counts are not known."""
    known = torch.tensor(counts if len(counts) == number else [1] * number, dtype=torch.float64)
    return known.cumsum(0) / known.sum()


def _drawn(ends: Tensor, uniform: Tensor) -> Tensor:
    """The choice that each of `uniform` `[B]` falls on, int64 `[B]`."""
    places = torch.searchsorted(ends, uniform.double(), right=True)
    return places.clamp(max=len(ends) - 1)


def _encoded(layout: Layout) -> Tensor | None:
    """The layout's prompts, int64 `[number, P]`; None when it has none."""
    if not layout.prompts:
        return None
    return torch.from_numpy(encode_prompts(layout.prompts, layout.prompt_length)).long()
