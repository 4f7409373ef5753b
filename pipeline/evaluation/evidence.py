"""Evidence: a statistic of generated examples beside the same of real ones, as the verdict reads it.

Plain values, on the driver. It is made from the scores of an evaluation, whoever computed them: each has a companion
that says what real examples would score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.evaluation.intervals import Estimate, Interval
from pipeline.evaluation.score import Score

COMPANIONS = ("_held_out", "_ceiling", "_floor")
"""What is added to a score's key for the same score of real examples."""


@dataclass(frozen=True)
class Evidence:
    """A statistic of generated examples, its 95% interval, and the same of held-out ones: plain numbers."""

    value: float
    interval: Interval | None
    held_out: float
    held_out_interval: Interval | None


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
    return evidence_of_values(
        {
            key.removeprefix(prefix): (score.value, score.interval)
            for key, score in scores.items()
            if key.startswith(prefix)
        }
    )
