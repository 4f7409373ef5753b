"""What a score is: a number with how it was taken, when two of them may be compared, and how few examples are too few.

Pure values, in whichever process. Every score is stamped with its protocol: the split and its examples, the prepared
set's key, the extractor and its sha256 where it has one, the numbers of samples, the seed and the code's version. Two
stamps that differ in anything but the seed are of different scores, and comparing them is an error.

The rule for small samples, in each score's `Definition`: with fewer examples in its smallest set than `fewest` a score
is refused, and why is kept; with fewer than `enough` it is given with a caution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.errors import ComparisonError
from pipeline.evaluation.intervals import Estimate, Interval

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Curve:
    """A score over what it depends on (`along`, as "temperature"): `x`, the values there and their 95% intervals."""

    along: str
    x: tuple[float, ...]
    values: tuple[float, ...]
    intervals: tuple[Interval | None, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Curve:
        """Undo `asdict`, also after JSON."""
        intervals = tuple(tuple(interval) if interval else None for interval in values["intervals"])
        return cls(values["along"], tuple(values["x"]), tuple(values["values"]), intervals)


@dataclass(frozen=True)
class Score:
    """A number with what it takes to compare it: unit, better direction, protocol and a 95% interval.

    The interval is over held-out and generated examples (the seed of the training is fixed). `caution` says in words
    why to read the number with care, as when its examples are few. `curve` is the score over what it was also taken at,
    and `shown` are examples that stand behind the number, of JSON types: both are for the reader of a report, neither
    is compared.
    """

    value: float
    unit: str = ""
    better: Better | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    interval: Interval | None = None
    caution: str | None = None
    curve: Curve | None = None
    shown: tuple[dict[str, Any], ...] = ()

    def comparable_with(self, other: Score) -> bool:
        """Whether both were taken in the same way: the same unit and the same protocol but for the seed."""
        return not differences(self, other)

    def as_dict(self) -> dict[str, Any]:
        """Of JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Score:
        """Undo `as_dict`, also after JSON."""
        interval, curve = values.get("interval"), values.get("curve")
        return cls(
            **{
                **values,
                "interval": tuple(interval) if interval else None,
                "curve": Curve.from_dict(curve) if curve else None,
                "shown": tuple(values.get("shown", ())),
            }
        )


class Scores(dict[str, Score]):
    """Scores by key, and in `refused` why those are missing that too few examples were at hand for."""

    def __init__(self, scores: Mapping[str, Score] | None = None, refused: Mapping[str, str] | None = None) -> None:
        super().__init__(scores or {})
        self.refused: dict[str, str] = dict(refused or {})


def differences(one: Score, other: Score) -> list[str]:
    """How the two were taken differently: `examples 40 and 41`. The seed may differ; empty when comparable."""
    found = [
        f"{key} {one.protocol.get(key)!r} and {other.protocol.get(key)!r}"
        for key in sorted(one.protocol.keys() | other.protocol.keys())
        if key != "seed" and one.protocol.get(key) != other.protocol.get(key)
    ]
    return found if one.unit == other.unit else [*found, f"units {one.unit!r} and {other.unit!r}"]


def require_comparable(one: Score, other: Score, of: str = "the scores", whose: str = "the two") -> None:
    """Nothing, when the two may be compared. Raises: ComparisonError naming all that differs.

    `of` is what was scored and `whose` the scores' owners, as they stand in the message.
    """
    found = differences(one, other)
    if found:
        raise ComparisonError(
            f"{of}: {whose} were taken in different ways ({'; '.join(found)}); score both again on the same data"
        )


@dataclass(frozen=True)
class Definition:
    """How a score is called, measured and read. `reading` is for someone who meets it for the first time; `fewest` and
    `enough` are the rule for small samples (see the module)."""

    title: str
    unit: str
    better: Better | None
    reading: str
    fewest: int = 0
    enough: int = 0

    def refusal(self, examples: int) -> str | None:
        """Why there is no such score of so few examples; None when there is."""
        if examples >= self.fewest:
            return None
        return (
            f"{self.title}: {examples:,} examples in the smallest set, and fewer than {self.fewest:,} say nothing; "
            "enlarge the held-out split or evaluation.samples"
        )

    def caution(self, examples: int) -> str | None:
        """What to say beside a score of so few examples; None when they are enough."""
        if examples >= self.enough:
            return None
        return (
            f"{examples:,} examples in the smallest set, fewer than the {self.enough:,} at which this score settles: "
            "read it against its reference and its interval only"
        )

    def score(self, estimate: Estimate, protocol: Mapping[str, Any], examples: int) -> Score:
        """The score of an estimate over so many examples, with a caution where they are few."""
        value, interval = estimate
        return Score(value, self.unit, self.better, dict(protocol), interval, self.caution(examples))
