"""What a training remembers beside its weights: its warnings, rollbacks, best validation, and what rules compare with.

Plain values, equal on all ranks, saved as JSON with every checkpoint: a resumed run decides as one that went through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Course:
    """How a training has gone so far.

    `lr_factor` multiplies the schedule's learning rate; `rollbacks` are the steps at which it exploded. `warnings` is
    by kind (see `health.HealthWarning`). `best_objective` is the lowest of all validations, at `best_step`;
    `without_gain` counts the validations since `gained_from`, the objective that early stopping measures from. `seen`
    and `streaks` are the recent values, and the counts in a row, of the rules of health. `unreported` is only of a
    checkpoint between two reports: the sum and the count of each mean since the last one.
    """

    lr_factor: float = 1.0
    rollbacks: list[int] = field(default_factory=list)
    warnings: dict[str, dict[str, Any]] = field(default_factory=dict)
    best_objective: float | None = None
    best_step: int = 0
    gained_from: float | None = None
    without_gain: int = 0
    seen: dict[str, list[float]] = field(default_factory=dict)
    streaks: dict[str, int] = field(default_factory=dict)
    unreported: dict[str, tuple[float, int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """A deep copy, of JSON types."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Course:
        """Of what `as_dict` gave; a checkpoint from before there were courses gives a new one."""
        return Course(**values)

    def remember(self, name: str, value: float, most: int) -> None:
        """Append to the recent values of `name`, of which `most` are kept."""
        self.seen[name] = [*self.seen.get(name, []), value][-most:]

    def in_a_row(self, rule: str, holds: bool) -> int:
        """How many times in a row `rule` holds, this one counted."""
        self.streaks[rule] = self.streaks.get(rule, 0) + 1 if holds else 0
        return self.streaks[rule]
