"""What a job tells its caller: the run, the model, its scores and verdict, and the seconds of each stage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """What a job tells its caller in its last line of output."""

    run_id: str | None = None
    model_uri: str | None = None
    model_version: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    examples_per_second: float | None = None
    prepared: str | None = None
    report: str | None = None
    verdict: dict[str, Any] | None = None
    warnings: list[dict[str, Any]] = field(default_factory=list)
    """Of the training's health: each has a kind, what was seen and at which steps, what it means and what to do."""

    def as_json(self) -> str:
        return json.dumps(vars(self), ensure_ascii=False)


COMPANIONS = ("_held_out", "_ceiling", "_floor")
"""What is added to a score's key for the same score of real examples."""


def score_lines(metrics: Mapping[str, float]) -> Iterator[str]:
    """Scores for a terminal, one a line, each with what real examples score where that is known."""
    for name, value in sorted(metrics.items()):
        if name.endswith(COMPANIONS):
            continue
        real = [metrics[name + companion] for companion in COMPANIONS if name + companion in metrics]
        beside = f"   real examples {real[0]:.4g}" if real else ""
        yield f"  {name:<28} {value:<10.4f}{beside}".rstrip()


def verdict_in_words(verdict: Mapping[str, Any]) -> str:
    """An outcome's verdict in a line: "good no, varied yes, new yes: blurred"."""
    answers = ", ".join(f"{question} {answer}" for question, answer in verdict.items() if question != "findings")
    return f"{answers}: {', '.join(verdict['findings'])}" if verdict["findings"] else answers


class Stopwatch:
    """Seconds by stage; `since` is when the process started, so that imports count."""

    def __init__(self, since: float | None = None) -> None:
        self.started = since or time.time()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.time()
        try:
            yield
        finally:
            self.add(name, time.time() - start)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 2)

    def with_total(self) -> dict[str, float]:
        return {**self.seconds, "total": round(time.time() - self.started, 2)}
