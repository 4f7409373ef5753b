"""Scores made of blocks, as the evaluation would measure them, for tests of what compares two models."""

from __future__ import annotations

import torch

from pipeline.evaluation.compare import Measured
from pipeline.evaluation.metric import Score


def measured(values: torch.Tensor, better: str = "lower", blocks: int = 20, **protocol: object) -> Measured:
    """A mean over examples `[N]`, in blocks."""
    parts = values.double().tensor_split(blocks)
    sums = {
        number: {"sum": part.sum(), "n": torch.tensor(float(len(part)), dtype=torch.float64)}
        for number, part in enumerate(parts)
    }
    score = Score(float(values.mean()), "nats", better, {"split": "test", "seed": 0, **protocol})  # type: ignore[arg-type]
    return Measured(score, sums, lambda part: float(part["sum"] / part["n"]))
