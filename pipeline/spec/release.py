"""The spec's `release`: what a model must show before it becomes champion.

Scores go by their keys, with the split in front (`test/nll_nats`) or without. The policy does not make a run another
one: it may be changed at any time, and `atelier release decide` applies it to versions that are there.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.reading import Strict


def _margin(value: float | str) -> float | str:
    if isinstance(value, str):
        if not re.fullmatch(r"\d+(\.\d+)?%", value):
            raise ValueError(f"{value!r} is no margin: write a number in the score's own unit, or a share such as 5%")
    elif not value >= 0:
        raise ValueError(f"{value:g} is no margin: it is not below 0")
    return value


Margin = Annotated[float | str, AfterValidator(_margin)]
"""In the score's own unit, or as a share of the champion's value, such as `5%`."""

Finding = Literal["copies", "collapsed", "blurred", "noise"]


class Limit(Strict):
    """Bounds of a score of the challenger, whatever the champion's is."""

    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Limit:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a limit needs at_least or at_most")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least:g} is above at_most {self.at_most:g}: nothing is within")
        return self


class ReleaseSpec(Strict):
    """The policy by which a challenger is promoted, held or rejected.

    `improve`: scores of which all must gain more than so much, with the whole 95% interval of the paired gain; none
    named, the family's objective must gain at all (for a GAN, `frechet`). `keep`: scores that may not worsen by more
    than so much, shown with the whole interval as well, so that a margin of 0 is not met by an equal model. `limits`:
    bounds of a score's value; a challenger outside is rejected, whatever its other scores say, and one without that
    score is held. `reject`: findings of the evaluation that reject a challenger; `copies` is one that gives back its
    training examples. `repeats`: resamples of the bootstrap. A first model, with no champion to compare with, must be
    within `limits` and without the findings.
    """

    improve: dict[str, Margin] = Field(default_factory=dict)
    keep: dict[str, Margin] = Field(default_factory=dict)
    limits: dict[str, Limit] = Field(default_factory=dict)
    reject: tuple[Finding, ...] = ("copies",)
    repeats: Annotated[int, Field(ge=200, le=100_000)] = 1000

    @model_validator(mode="after")
    def _scores_once(self) -> ReleaseSpec:
        for name in ("improve", "keep", "limits"):
            keys = [bare(key) for key in getattr(self, name)]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            if twice:
                raise ValueError(f"{name} has {', '.join(twice)} with and without the split; name each once")
        both = sorted(set(map(bare, self.improve)) & set(map(bare, self.keep)))
        if both:
            raise ValueError(f"{', '.join(both)}: in improve and in keep; what must improve is kept already")
        return self


def bare(key: str) -> str:
    """A score's key without the split in front."""
    return key.rpartition("/")[2]
