"""Two models on the same held-out examples: which scores may be compared, and what a comparison says.

Plain PyTorch, on the driver; `paired` takes the intervals.

A model whose characters are not those of the held-out set (its vocabulary was fitted on other texts) reads the set
through its own: every character keeps its place, so blocks stay paired. Where it knows fewer characters, its one symbol
for all others would be an easier target than the other model's several; each such token is charged the logarithm of
how many it stands for, which makes both distributions over the same alphabet. Other codecs that differ are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.data.characters import CharactersCodec
from pipeline.data.codec import Codec
from pipeline.data.prepared import SplitArrays
from pipeline.errors import ComparisonError
from pipeline.evaluation.metric import Interval, Score, Sums, require_comparable


@dataclass(frozen=True)
class Measured:
    """A score with what it is made of: the sums of each block, by the block's number, and the value of any of them."""

    score: Score
    blocks: Mapping[int, Sums]
    value: Callable[[Sums], float]


@dataclass(frozen=True)
class Comparison:
    """How much better the challenger is: `gain` is positive when it is, whichever direction is better.

    `interval` is the gain's, 95%; None when the split gives too few blocks. `method`: how the interval was taken.
    """

    metric: str
    champion: float
    challenger: float
    gain: float
    interval: Interval | None
    unit: str
    protocol: dict[str, Any]
    method: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_comparable(metric: str, champion: Score, challenger: Score) -> None:
    """Raises: ComparisonError when the scores are of different protocols, or of one that has no better direction."""
    require_comparable(champion, challenger, metric, "the champion's score and the challenger's")
    if challenger.better is None:
        raise ComparisonError(f"{metric}: neither more nor less of it is better; name another score")


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


def labels_of(label: Tensor, held: Sequence[str], own: Sequence[str]) -> Tensor:
    """Labels int64 `[N]` by their places in `held` as places in `own`, which a model of another set has; -1 where it
    does not know one."""
    if tuple(held) == tuple(own):
        return label
    places = {name: place for place, name in enumerate(own)}
    return torch.tensor([*(places.get(name, -1) for name in held), -1])[label]  # -1 is the last


def _packed_alike(own: CharactersCodec, held: CharactersCodec) -> bool:
    shapes = [(c.spec.packing, c.spec.length, c.spec.special_tokens, c.separate_documents) for c in (own, held)]
    return shapes[0] == shapes[1]
