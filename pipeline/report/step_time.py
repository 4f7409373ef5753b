"""Where the time of training went: the parts of a step, in the mean and in the last report, with memory and speed.

Pure functions of a run's history, giving what the template shows; None where there are no such measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.curves import number
from pipeline.training.timing import PARTS, parts_of

NAMES = {
    "data": "waiting for data",
    "forward": "forward",
    "backward": "backward",
    "communication": "waiting for other workers",
    "optimiser": "optimiser",
    "other": "the rest of the step",
    "report": "means for reports",
    "validation": "validation",
    "recording": "recording",
    "checkpoint": "checkpoints",
}
"""What each of `timing.PARTS` is called on a page."""


def step_time_section(history: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """The parts of a training step with their mean over the training (each report weighs as many steps as it is of)
    and their last value, largest mean first; and the facts beside them, as pairs of words."""
    reports = [row for row in history if parts_of(row)]
    reports.sort(key=lambda row: row["step"])
    if not reports:
        return None
    ends = [0, *(int(row["step"]) for row in reports)]
    counts = [max(1, after - before) for before, after in zip(ends[:-1], ends[1:], strict=True)]
    steps = sum(counts)
    weighed = [(parts_of(row), count / steps) for row, count in zip(reports, counts, strict=True)]
    means = {part: math.fsum(parts.get(part, 0.0) * weight for parts, weight in weighed) for part in PARTS}
    whole, last = math.fsum(means.values()), parts_of(reports[-1])
    if whole <= 0:
        return None
    rows = [
        {"name": NAMES[part], "share": 100 * means[part] / whole, "mean": _time(means[part]), "last": _time(last[part])}
        for part in sorted(last, key=lambda part: -means[part])
        if means[part] > 0
    ]
    return {"rows": rows, "whole": _time(whole), "last": _time(math.fsum(last.values())), "facts": _facts(history)}


def _facts(history: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
    """The peak of memory and, in the median of reports, what the model computed."""
    facts = []
    memory = _values(history, "train/peak_memory_mib")
    if memory:
        facts.append(("Peak memory of a worker", f"{max(memory):,.0f} MiB"))
    speed = _values(history, "train/model_tflops_per_second")
    if speed:
        facts.append(("Model operations", f"{number(1000 * speed[len(speed) // 2])} GFLOP/s"))
    share = _values(history, "train/mfu")
    if share:
        facts.append(("Of the device's peak (MFU)", f"{share[len(share) // 2]:.1%}"))
    return facts


def _values(history: Sequence[Mapping[str, float]], key: str) -> list[float]:
    return sorted(row[key] for row in history if key in row)


def _time(seconds: float) -> str:
    """Of a step: in milliseconds below a second."""
    value, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    return f"{number(float(f'{value:.4g}'))} {unit}"
