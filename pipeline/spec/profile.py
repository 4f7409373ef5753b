"""The spec's `training.profile`: which steps are recorded in a trace."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.reading import Count, Strict


class ProfileSpec(Strict):
    """Which steps a trace records: `steps` of them, after `wait` that are left alone, since the first ones of a process
    compile, allocate and warm caches, and two more in which the profiler warms up. A training with fewer steps left
    waits less. Each start of a run records once.
    """

    steps: Count = 5
    wait: Annotated[int, Field(ge=0)] = 20
