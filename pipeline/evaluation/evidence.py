"""Evidence: a statistic of generated examples beside the same of real ones, as the verdict reads it.

Plain values, on the driver. It is made from the scores of an evaluation, whoever computed them: each has a companion
that says what real examples would score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.evaluation.intervals import Estimate, Interval
from pipeline.evaluation.score import Score
from pipeline.outcome import COMPANIONS

GRAM = "gram_characters"
"""Under this key, how many characters the n-grams have that a text was searched for; from the scores' protocol."""


@dataclass(frozen=True)
class Evidence:
    """A statistic of generated examples, its 95% interval, and the same of held-out ones: plain numbers."""

    value: float
    interval: Interval | None
    held_out: float
    held_out_interval: Interval | None


def exactly(value: float) -> Evidence:
    """Evidence that is no estimate, and the same for all."""
    return Evidence(value, (value, value), value, (value, value))


def evidence_of_values(values: Mapping[str, Estimate]) -> dict[str, Evidence]:
    """The evidence in values and intervals by key: every one that has a companion."""
    return {
        key: Evidence(*value, *values[key + companion])
        for key, value in values.items()
        for companion in COMPANIONS
        if key + companion in values
    }


def evidence_of(scores: Mapping[str, Score], prefix: str = "") -> dict[str, Evidence]:
    """The evidence in scores, whose keys begin with their split's `prefix` (`test/`); under keys without it."""
    own = {key.removeprefix(prefix): score for key, score in scores.items() if key.startswith(prefix)}
    found = evidence_of_values({key: (score.value, score.interval) for key, score in own.items()})
    if "copied_share" in own and GRAM in own["copied_share"].protocol:
        found[GRAM] = exactly(own["copied_share"].protocol[GRAM])
    return found
