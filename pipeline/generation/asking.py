"""Asking a model for something: from labels and text prompts in words to what its networks see, one wish a sample.

Plain values, in whichever process draws. What is not asked for is drawn here as often as the corpus has it, so that of
every sample it is known what it was meant to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pipeline.data.layout import Layout
from pipeline.data.prompts import encode_prompts, is_cut
from pipeline.errors import SpecError
from pipeline.models.base import SamplingOptions, make_generator
from pipeline.spec import RunSpec

if TYPE_CHECKING:
    from pipeline.generation.sampling import Bundle

MODALITIES = {"text": "texts", "image": "pictures", "audio": "sounds"}
MOST_NAMED = 20
"""Labels or prompts named in a sentence."""


@dataclass(frozen=True)
class Wish:
    """What one sample is asked for, in words; None where its model takes no such thing, or anything will do."""

    label: str | None = None
    prompt: str | None = None

    def in_words(self) -> str:
        parts = [self.label or "", f"“{self.prompt}”" if self.prompt is not None else ""]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Takes:
    """What a model may be asked for: by its `labels`, by a text prompt of up to `prompt_length` tokens (0 for none;
    `prompts` are the commonest it was trained with), or by a text that it continues."""

    labels: tuple[str, ...]
    prompts: tuple[str, ...]
    prompt_length: int
    continues: bool

    @classmethod
    def of(cls, spec: RunSpec, layout: Layout) -> Takes:
        on = spec.model.condition.on
        on_prompt = "prompt" in on
        return cls(
            layout.labels if "label" in on else (),
            layout.prompts if on_prompt else (),
            layout.prompt_length if on_prompt else 0,
            layout.modality == "text" and spec.model.family.kind == "rnn" and not on_prompt,
        )

    def __bool__(self) -> bool:
        """Whether its samples have a condition."""
        return bool(self.labels or self.prompt_length)

    def in_words(self) -> list[str]:
        """Each thing that may be asked for, as the option of `atelier generate` and what it takes."""
        lines = []
        if self.labels:
            lines.append(f"--label, one of {_named(self.labels)}")
        if self.prompt_length:
            known = f", such as {_named(self.prompts)}" if self.prompts else ""
            lines.append(f"--prompt, a text of up to {self.prompt_length - 2} bytes{known}")
        if self.continues:
            lines.append("--prompt, a text that it continues")
        return lines


def ask(
    bundle: Bundle,
    count: int,
    seed: int,
    labels: Sequence[str] = (),
    prompt: str | None = None,
    options: SamplingOptions | None = None,
) -> tuple[SamplingOptions, list[Wish]]:
    """`options` that ask for `count` samples, and what each of them is asked for.

    Several labels are given in turn: sample i gets label i mod n. A condition that is not asked for is drawn as often
    as the training split has it, by `seed`. A text model without conditions continues the prompt. Raises: SpecError
    when the model does not take what is asked for, with what it does take.
    """
    options = options or SamplingOptions()
    spec, layout = bundle.spec, bundle.layout
    takes = Takes.of(spec, layout)
    for asked, name, taken in (
        (labels[0] if labels else None, "label", bool(takes.labels)),
        (prompt, "prompt", bool(takes.prompt_length) or takes.continues),
    ):
        if asked is not None and not taken:
            what = f"a {spec.model.family.kind} of {MODALITIES[layout.modality]}"
            instead = "; ".join(takes.in_words()) or "nothing: it was trained without conditions (model.condition)"
            raise SpecError(f"--{name} {asked!r}: {bundle.spec.name}, {what}, takes no {name}; it takes {instead}")
    for label in labels:
        if label not in takes.labels:
            raise SpecError(f"--label {label!r}: the model knows {_named(takes.labels, len(takes.labels))}")
    if prompt is not None and takes.continues:
        from pipeline.generation.sampling import encode_prompt

        return encode_prompt(bundle, prompt, options), [Wish(prompt=prompt)] * count
    if prompt is not None and is_cut(prompt, takes.prompt_length):
        raise SpecError(
            f"--prompt {prompt[:40]!r}…: {len(prompt.encode())} bytes of UTF-8, the model reads "
            f"{takes.prompt_length - 2} (data.prompt.length); shorten it"
        )
    wishes = _drawn(spec, layout, count, seed)
    if labels:
        wishes = [replace(wish, label=labels[i % len(labels)]) for i, wish in enumerate(wishes)]
    if prompt is not None:
        wishes = [replace(wish, prompt=prompt) for wish in wishes]
    return with_wishes(layout, wishes, options), wishes


def in_turn(spec: RunSpec, layout: Layout, count: int) -> list[Wish]:
    """Wishes that go through all labels and the commonest prompts again and again: what a report shows, so that each is
    there; and what is measured, so that all count alike."""
    labels, prompts = Takes.of(spec, layout).labels, Takes.of(spec, layout).prompts
    # Both begin again together after `cycle`; from then on each label has the next prompt.
    cycle = math.lcm(max(1, len(labels)), max(1, len(prompts)))
    return [
        Wish(
            labels[i % len(labels)] if labels else None,
            prompts[(i + i // cycle) % len(prompts)] if prompts else None,
        )
        for i in range(count)
    ]


def with_wishes(layout: Layout, wishes: Sequence[Wish], options: SamplingOptions) -> SamplingOptions:
    """`options` that ask for these wishes, one a sample."""
    if any(wish.label is not None for wish in wishes):
        places = {label: place for place, label in enumerate(layout.labels)}
        chosen = tuple(-1 if wish.label is None else places[wish.label] for wish in wishes)
        options = replace(options, asked_label=chosen)
    if any(wish.prompt is not None for wish in wishes):
        tokens = encode_prompts([wish.prompt for wish in wishes], layout.prompt_length)
        options = replace(options, asked_prompt=tuple(tuple(row) for row in tokens.tolist()))
    return options


def part_of(options: SamplingOptions, start: int, stop: int) -> SamplingOptions:
    """`options` for the samples `start` to `stop` of those that it asks for."""
    if isinstance(options.asked_label, tuple):
        options = replace(options, asked_label=options.asked_label[start:stop])
    if options.asked_prompt is not None and isinstance(options.asked_prompt[0], tuple):
        options = replace(options, asked_prompt=options.asked_prompt[start:stop])
    return options


def _drawn(spec: RunSpec, layout: Layout, count: int, seed: int) -> list[Wish]:
    """Wishes as often as the training split has them, label and prompt independently of each other."""
    takes = Takes.of(spec, layout)
    labels = _choices(takes.labels, layout.label_counts, count, seed, "asked-labels")
    prompts = _choices(takes.prompts, layout.prompt_counts, count, seed, "asked-prompts")
    return [Wish(label, prompt) for label, prompt in zip(labels, prompts, strict=True)]


def _choices(
    known: Sequence[str], counts: Sequence[int], count: int, seed: int, stream: str
) -> Sequence[str] | list[None]:
    if not known:
        return [None] * count
    shares = torch.tensor(counts if len(counts) == len(known) else [1] * len(known), dtype=torch.float64)
    drawn = torch.multinomial(shares, count, replacement=True, generator=make_generator(seed, stream))
    return [known[place] for place in drawn.tolist()]


def _named(values: Sequence[str], most: int = MOST_NAMED) -> str:
    return ", ".join(values[:most]) + (f", … ({len(values):,} in all)" if len(values) > most else "")
