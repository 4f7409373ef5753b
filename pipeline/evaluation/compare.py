"""Two models on the same held-out examples: the difference of a score with a paired 95% interval.

Plain PyTorch, on the driver. Both were measured over the same blocks of the same split with the same noise, so leaving
out a block leaves it out of both: what is easy or hard for either cancels, and the interval of the difference is
narrower than those of the two scores.

A model whose characters are not those of the held-out set (its vocabulary was fitted on other texts) reads the set
through its own: every character keeps its place, so blocks stay paired. Where it knows fewer characters, its one symbol
for all others would be an easier target than the other model's several; each such token is charged the logarithm of
how many it stands for, which makes both distributions over the same alphabet. Other codecs that differ are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from pipeline.data.codec import Codec
from pipeline.data.prepared import SplitArrays
from pipeline.data.text import CharactersCodec
from pipeline.errors import ComparisonError
from pipeline.evaluation.metric import FEWEST_BLOCKS, Interval, Score, Sums, require_comparable, with_intervals

CHAMPION, CHALLENGER = "champion/", "challenger/"


@dataclass(frozen=True)
class Measured:
    """A score with what it is made of: the sums of each block, by the block's number, and the value of any of them."""

    score: Score
    blocks: Mapping[int, Sums]
    value: Callable[[Sums], float]


@dataclass(frozen=True)
class Comparison:
    """How much better the challenger is: `gain` is positive when it is, whichever direction is better.

    `interval` is the gain's, 95%, paired; None when the split gives too few blocks.
    """

    metric: str
    champion: float
    challenger: float
    gain: float
    interval: Interval | None
    unit: str
    protocol: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(metric: str, champion: Measured, challenger: Measured) -> Comparison:
    """The challenger's gain over the champion, by the delete-one-block jackknife over blocks of both.

    Raises: ComparisonError when the scores are of different protocols, or of a score that has no better direction.
    """
    ours, theirs = challenger.score, champion.score
    require_comparable(theirs, ours, metric, "the champion's score and the challenger's")
    if ours.better is None:
        raise ComparisonError(f"{metric}: neither more nor less of it is better; set compare.metric to another score")
    if champion.blocks.keys() != challenger.blocks.keys():
        raise ComparisonError(
            f"{metric}: the champion was measured on {len(champion.blocks)} blocks and the challenger on "
            f"{len(challenger.blocks)}; score both again on the same data"
        )
    sign = 1.0 if ours.better == "lower" else -1.0

    def gain(part: Sums) -> dict[str, float]:
        before, after = (
            {n.removeprefix(p): v for n, v in part.items() if n.startswith(p)} for p in (CHAMPION, CHALLENGER)
        )
        return {"gain": sign * (champion.value(before) - challenger.value(after))}

    pairs = [
        {
            **{CHAMPION + name: value for name, value in champion.blocks[number].items()},
            **{CHALLENGER + name: value for name, value in challenger.blocks[number].items()},
        }
        for number in sorted(champion.blocks)
    ]
    value, interval = with_intervals(pairs, gain)["gain"]
    return Comparison(metric, theirs.value, ours.value, value, interval, ours.unit, dict(ours.protocol))


def better_than(comparison: Comparison, min_gain: float) -> tuple[bool, str]:
    """Whether the gain is above `min_gain` with its whole interval, and that in words."""
    shown = f"{comparison.metric} {comparison.champion:.4f} to {comparison.challenger:.4f} {comparison.unit}"
    if comparison.interval is None:
        return False, f"{shown}: the held-out split has fewer than {FEWEST_BLOCKS} blocks, too few for an interval"
    low, high = comparison.interval
    gain = f"gain {comparison.gain:.4f} (95% {low:.4f} to {high:.4f})"
    if low > min_gain:
        return True, f"{shown}: {gain}, above {min_gain:g}"
    return False, f"{shown}: {gain}, not above {min_gain:g} with 95% confidence"


def read_through(own: Codec, held: Codec, arrays: SplitArrays, num_rows: int) -> tuple[SplitArrays, float]:
    """`arrays`, which codec `held` encoded, as a model with the codec `own` reads them; and the nats to charge it in
    all over its first `num_rows` rows (see the module). Raises: ComparisonError on codecs that cannot be compared."""
    if own.state() == held.state():
        return arrays, 0.0
    if not (isinstance(own, CharactersCodec) and isinstance(held, CharactersCodec) and _packed_alike(own, held)):
        raise ComparisonError(
            f"the model's codec ({own.spec.kind}) is not that of the held-out set ({held.spec.kind}), and only "
            "vocabularies of characters in the same packing can be read through each other; train a champion on the "
            "new data, or take data.codec.kind 'bytes' or 'characters'"
        )
    places = {character: place for place, character in enumerate(own.characters)}
    table = [places.get(character, own.unknown) for character in held.characters] + [own.unknown]
    table += own.special_identifiers.values()
    table += own.packing_identifiers.values()
    lookup = torch.tensor(table)
    stands_for = sum(place == own.unknown for place in table)
    read = replace(arrays, x=lookup[arrays.x.long()].to(torch.int32), tail=lookup[arrays.tail.long()])
    unknown = int((read.x[:num_rows] == own.unknown).sum())
    if num_rows == len(read.x):
        unknown += int((read.tail == own.unknown).sum())
    return read, unknown * math.log(stands_for)


def _packed_alike(own: CharactersCodec, held: CharactersCodec) -> bool:
    shapes = [(c.spec.packing, c.spec.length, c.spec.special_tokens, c.separate_documents) for c in (own, held)]
    return shapes[0] == shapes[1]
