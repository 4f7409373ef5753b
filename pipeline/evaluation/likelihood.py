"""The model's own held-out scores: `GenerativeModel.evaluate` over every example, once.

Whole examples go in batches of at most `evaluation.batch_size`, batch k to worker k % W. Continuous text is one stream
(the split's windows and its tail), read in lanes side by side; each lane first reads up to two windows whose
losses do not count, so that it starts with a filled state, and every token but the very first is a target
exactly once. Batches and groups of lanes are cut by the data alone: the sums do not depend on W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.layout import Layout
from pipeline.data.prepared import SplitArrays
from pipeline.evaluation.metric import (
    DEFINITIONS,
    Definition,
    Metric,
    Score,
    Subject,
    add,
    in_block,
    total_of,
    with_intervals,
)
from pipeline.models.base import LOG_2, Batch, GenerativeModel, Noise, Sums, make_generator
from pipeline.progress import Progress, silent
from pipeline.spec import RunSpec

BLOCKS = 20
"""Blocks of the split that the interval is taken over."""
LANES = 16
"""Lanes that are read side by side as one batch."""
BURN_IN_WINDOWS = 2
"""Windows a lane reads before its own, to fill the recurrent state."""
WINDOWS_PER_LANE = 16
"""A text gets another group of lanes (which another worker may take) once each lane has this many windows."""
MOST_GROUPS = 64


@dataclass(frozen=True)
class Piece:
    """The sums of one batch, and the block of the split that it belongs to."""

    block: int
    sums: Sums


def num_rows(arrays: SplitArrays, spec: RunSpec) -> int:
    """Held-out rows that are scored."""
    cut = spec.evaluation.max_examples
    return len(arrays.x) if cut is None else min(len(arrays.x), cut)


def batch_rows(rows: int, spec: RunSpec) -> int:
    """Rows of a batch: `evaluation.batch_size`, or fewer where a small split would not fill all blocks."""
    return max(1, min(spec.evaluation.batch_size, -(-rows // BLOCKS)))


def num_pieces(arrays: SplitArrays, layout: Layout, spec: RunSpec) -> int:
    """Batches over all workers."""
    rows = num_rows(arrays, spec)
    if not layout.continuous:
        return -(-rows // batch_rows(rows, spec))
    stream = Stream.of(arrays, layout, rows)
    return sum(len(list(stream.steps(group))) for group in range(stream.num_groups))


def split_pieces(
    model: GenerativeModel,
    arrays: SplitArrays,
    layout: Layout,
    spec: RunSpec,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Piece]:
    """The sums of every batch that falls to `rank`."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if layout.continuous:
                yield from _stream_pieces(model, arrays, layout, spec, seed, rank, world_size, device)
            else:
                yield from _row_pieces(model, arrays, layout, spec, seed, rank, world_size, device)
    finally:
        model.train(was_training)


def evaluate_split(
    model: GenerativeModel,
    arrays: SplitArrays,
    layout: Layout,
    spec: RunSpec,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Sums:
    """This rank's sums over a held-out split; add those of all ranks, then `model.summarise`.

    `evaluation.max_examples` cuts the split; noise is a function of (seed, first row of the batch). The model is
    put in evaluation mode and back.
    """
    total: Sums = {}
    count = num_pieces(arrays, layout, spec)
    for done, piece in enumerate(split_pieces(model, arrays, layout, spec, seed, rank, world_size, device), start=1):
        add(total, piece.sums)
        progress("evaluate", min(done * world_size, count), count, "held-out examples")
    return total


def _row_pieces(
    model: GenerativeModel,
    arrays: SplitArrays,
    layout: Layout,
    spec: RunSpec,
    seed: int,
    rank: int,
    world_size: int,
    device: torch.device | str,
) -> Iterator[Piece]:
    rows = num_rows(arrays, spec)
    size = batch_rows(rows, spec)
    count = -(-rows // size)
    for number in range(rank, count, world_size):
        start = number * size
        stop = min(start + size, rows)
        batch = Batch(
            layout.to_model(arrays.x[start:stop]).to(device),
            arrays.label[start:stop].to(device),
            torch.arange(start, stop, device=device),
            None if arrays.prompt is None else arrays.prompt[start:stop].long().to(device),
        )
        noise = Noise(make_generator(seed, "evaluation", start, device=device))
        sums, _ = model.evaluate(batch, noise)
        yield Piece(number * BLOCKS // count if count >= BLOCKS else number, sums)


@dataclass(frozen=True)
class Stream:
    """A text as one stream of tokens, cut into targets windows of `length` that lanes read in order.

    Window w predicts tokens `w * length + 1` to `(w + 1) * length` (fewer at the end of the stream) from the
    token before each.
    """

    tokens: Tensor
    length: int
    num_windows: int
    num_groups: int
    num_lanes: int

    @classmethod
    def of(cls, arrays: SplitArrays, layout: Layout, rows: int) -> Stream:
        stored = arrays.x[:rows].reshape(-1)
        if rows == len(arrays.x):
            stored = torch.cat([stored, arrays.tail.to(stored.dtype)])
        tokens = layout.to_model(stored)
        windows = max(0, -(-(len(tokens) - 1) // layout.length))
        groups = max(1, min(MOST_GROUPS, windows // (LANES * WINDOWS_PER_LANE)))
        return cls(tokens, layout.length, windows, groups, min(groups * LANES, windows))

    @property
    def num_targets(self) -> int:
        return max(0, len(self.tokens) - 1)

    def lane(self, lane: int) -> tuple[int, int]:
        """First window of a lane, and the one after its last."""
        return lane * self.num_windows // self.num_lanes, (lane + 1) * self.num_windows // self.num_lanes

    def lanes(self, group: int) -> range:
        """The lanes of a group."""
        return range(group * self.num_lanes // self.num_groups, (group + 1) * self.num_lanes // self.num_groups)

    def steps(self, group: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """What a group reads at once, in order: (step, [(lane's place in the group, window), ...]).

        Steps below zero are burn-in. A window cut short by the end of the stream is read by itself.
        """
        lanes = [self.lane(lane) for lane in self.lanes(group)]
        longest = max((last - first for first, last in lanes), default=0)
        for step in range(-BURN_IN_WINDOWS, longest):
            whole: list[tuple[int, int]] = []
            short: list[tuple[int, int]] = []
            for place, (first, last) in enumerate(lanes):
                window = first + step
                if 0 <= window < last:
                    cut = (window + 1) * self.length > self.num_targets
                    (short if cut else whole).append((place, window))
            for together in (whole, short):
                if together:
                    yield step, together


def _stream_pieces(
    model: GenerativeModel,
    arrays: SplitArrays,
    layout: Layout,
    spec: RunSpec,
    seed: int,
    rank: int,
    world_size: int,
    device: torch.device | str,
) -> Iterator[Piece]:
    stream = Stream.of(arrays, layout, num_rows(arrays, spec))
    for group in range(rank, stream.num_groups, world_size):
        lanes = stream.lanes(group)
        longest = max((stream.lane(lane)[1] - stream.lane(lane)[0] for lane in lanes), default=0)
        noise = Noise(make_generator(seed, "evaluation", group, device=device))
        states: tuple[Tensor, ...] | None = None  # [lanes, layers, H] each
        for step, together in stream.steps(group):
            places = torch.tensor([place for place, _ in together], device=device)
            first = torch.tensor([window for _, window in together]) * layout.length
            width = min(layout.length, stream.num_targets - int(first[0])) + 1
            x = stream.tokens[first.unsqueeze(1) + torch.arange(width)].to(device)  # [lanes now, T + 1]
            batch = Batch(x, torch.full_like(places, -1), first.to(device) // layout.length)
            # A state of zeros is how an empty one starts, so lanes without burn-in may join those with.
            carry = None if states is None else tuple(state[places] for state in states)
            sums, after = model.evaluate(batch, noise, carry)
            if after is not None:
                if states is None:
                    states = tuple(part.new_zeros(len(lanes), *part.shape[1:]) for part in after)
                for state, part in zip(states, after, strict=True):
                    state[places] = part
            yield Piece(
                max(0, step) * BLOCKS // longest if longest >= BLOCKS else max(0, step), sums if step >= 0 else {}
            )


class Likelihood(Metric):
    """The scores that the family itself gives, and for text bits per character and per byte.

    Units and directions are those of `DEFINITIONS`. Reduces by adding the family's sums; the interval is over
    blocks of the split (contiguous ones, for text), so it covers the draw of held-out examples.
    """

    name = "likelihood"

    def num_pieces(self, subject: Subject) -> int:
        return num_pieces(subject.arrays, subject.layout, subject.spec)

    def pieces(self, subject: Subject, rank: int, world_size: int) -> Iterator[Sums]:
        for piece in split_pieces(
            subject.model,
            subject.arrays,
            subject.layout,
            subject.spec,
            subject.spec.seed,
            rank,
            world_size,
            subject.device,
        ):
            yield in_block(piece.block, piece.sums)

    def blocks(self, sums: Sums, subject: Subject) -> dict[int, Sums]:
        """The sums of each block, with its share of the surcharge."""
        blocks = super().blocks(sums, subject)
        if subject.surcharge_nats:
            unit = "tokens" if all("tokens" in block for block in blocks.values()) else "examples"
            each = subject.surcharge_nats / float(total_of(list(blocks.values()))[unit])
            for block in blocks.values():
                for name, sign in (("nats", 1), ("nll", 1), ("elbo", -1)):
                    if name in block:
                        block[name] = block[name] + sign * each * block[unit]
        return blocks

    def scoring(self, blocks: Sequence[Sums], subject: Subject) -> Callable[[Sums], dict[str, float]]:
        lengths = text_lengths(subject)
        examples = float(total_of(blocks)["examples"])

        def scores(part: Sums) -> dict[str, float]:
            values = dict(subject.model.summarise(part))
            nats = part.get("nats", part.get("nll"))
            if lengths is not None and nats is not None:
                # Of a part of the split, its share of the characters: by tokens, which windows of a stream share out.
                share = (
                    float(part["tokens"]) / lengths.tokens if "tokens" in part else float(part["examples"]) / examples
                )
                bits = float(nats) / LOG_2
                values["bits_per_char"] = bits / (lengths.characters * share)
                values["bits_per_byte"] = bits / (lengths.utf8_bytes * share)
            return values

        return scores

    def finish(self, sums: Sums, subject: Subject) -> dict[str, Score]:
        blocks = list(self.blocks(sums, subject).values())
        lengths = text_lengths(subject)
        result: dict[str, Score] = {}
        for name, (value, interval) in with_intervals(blocks, self.scoring(blocks, subject)).items():
            definition = DEFINITIONS.get(name, Definition(name, "", None, ""))
            protocol = subject.protocol()
            if name == "nll_nats" and subject.spec.model.family.kind == "vae":
                protocol["draws_per_example"] = subject.spec.evaluation.nll_samples
            if lengths is not None:
                protocol["characters"] = round(lengths.characters)
            result[name] = Score(
                value, definition.unit, definition.better, protocol, None if name in WITHOUT_INTERVAL else interval
            )
        return result


WITHOUT_INTERVAL = frozenset({"active_units"})
"""Counts that jump: the jackknife is for smooth statistics."""


@dataclass(frozen=True)
class TextLengths:
    """How much text the scored part of the split stands for."""

    tokens: float
    characters: float
    utf8_bytes: float


def text_lengths(subject: Subject) -> TextLengths | None:
    """Characters and bytes that the scored tokens stand for; None when the modality is not text.

    A continuous stream has them in the manifest; of its tokens all but the first are scored (and only the first
    windows under `max_examples`), so it counts for that share. Documents, which may have been cut at the
    codec's length, are decoded and counted.
    """
    layout, arrays = subject.layout, subject.arrays
    if layout.modality != "text":
        return None
    if layout.continuous:
        whole = arrays.x.numel() + arrays.tail.numel()
        targets = Stream.of(arrays, layout, subject.num_rows).num_targets
        if targets == 0:
            return None
        share = targets / whole
        return TextLengths(targets, subject.split["characters"] * share, subject.split["utf8_bytes"] * share)
    rows = layout.to_model(arrays.x[: subject.num_rows])
    texts = [str(subject.codec.decode(row.numpy())) for row in rows]
    characters, size = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
    counted = rows != layout.pad_token if layout.pad_token is not None else torch.ones_like(rows, dtype=torch.bool)
    tokens = int(counted[:, 1:].sum() if layout.begin_token is not None else counted.sum())
    if not characters or not tokens:
        return None
    return TextLengths(tokens, characters, size)
