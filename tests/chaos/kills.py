"""Which kills a run suffers, and when: drawn from a seed alone, so that what a soak found can be had again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Victim = Literal["worker", "node", "driver"]
VICTIMS: tuple[Victim, ...] = ("worker", "node", "driver")

IN_STEPS, IN_LAUNCH = 0.75, 0.9
"""Shares of the kills: in the midst of steps; while what the kill before it ended is launched again; at the end."""
FIRST_SHARE, LAST_SHARE = 0.05, 0.85
"""Of the steps, where kills in the midst of steps begin and end: the run must still be there for the last one."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL for a `victim`: a training worker, the raylet of the node where one is, or the driver.

    It comes `delay_seconds` after the run has a checkpoint of `at_step` or a later one, written since the kill before;
    without a step as soon as there is a victim, in the launch that the kill before made necessary.
    """

    victim: Victim
    at_step: int | None
    delay_seconds: float

    def in_words(self) -> str:
        when = "in the launch" if self.at_step is None else f"after step {self.at_step:,}"
        return f"{self.victim}, {self.delay_seconds:.1f} s {when}"


def chance_of(seed: int, case: str) -> random.Random:
    """What a run's kills are drawn with: cases of one seed suffer different ones."""
    return random.Random(f"{case} {seed}")


def draw_kills(chance: random.Random, count: int, steps: int, victims: Sequence[Victim] = VICTIMS) -> list[Kill]:
    """`count` kills of a run of `steps` steps, in the order in which they come.

    Every victim comes once before one comes again, in an order that is drawn. Not the first is in a launch: a driver
    that is killed before its run has a folder leaves nothing to go on with.
    """
    order: list[Victim] = []
    while len(order) < count:
        order += chance.sample(list(victims), len(victims))
    kinds = [0.0 if number == 0 else chance.random() for number in range(count)]
    at = sorted(round(steps * chance.uniform(FIRST_SHARE, LAST_SHARE)) for _ in range(count))
    kills = []
    for victim, kind, step in zip(order, kinds, at, strict=False):
        if kind < IN_STEPS:
            kills.append(Kill(victim, step, chance.uniform(0, 1)))
        elif kind < IN_LAUNCH:
            kills.append(Kill(victim, None, chance.uniform(0, 4)))
        else:
            # Only the driver is at work then: it scores, registers and writes the page.
            kills.append(Kill("driver", steps, chance.uniform(0, 8)))
    # What comes at the end comes last.
    return sorted(kills, key=lambda kill: kill.at_step == steps)
