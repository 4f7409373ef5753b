"""How a training ends: at its limit, with what it made, or as SIGTERM asked, with a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor

from pipeline.progress import Progress

STOPPED = 143
"""The exit code of a process that SIGTERM ended."""


@dataclass
class Trained:
    """A training that reached its limit: where it ended, the weights for scores, and when its first step began."""

    step: int
    seconds: float
    weights: dict[str, Tensor]
    first_step_at: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    """Of the training's health, as `health.warnings_of` gives them."""


def leave(progress: Progress, step: int, steps: int) -> NoReturn:
    """End as SIGTERM asked. Raises: SystemExit."""
    progress("stopped", step, steps, f"a checkpoint of step {step:,} is saved; the same command goes on from it")
    raise SystemExit(STOPPED)
