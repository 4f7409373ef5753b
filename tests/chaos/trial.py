"""A case before the court: its undisturbed run, once, and runs under kills that must equal it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.cases import STEPS
from tests.chaos.evidence import (
    History,
    differing_weights,
    history_faults,
    history_of,
    left_running,
    runs_of,
    versions_of,
)
from tests.chaos.kills import chance_of, draw_kills
from tests.chaos.ordeal import Came, Ordeal
from tests.integration.ray_nodes import RayNodes


class Trial:
    """Runs of one case on `workers` workers in one storage."""

    def __init__(self, case: str, storage: Path, workers: int = 1) -> None:
        self.case, self.storage, self.workers = case, storage, workers
        self.undisturbed: Came | None = None
        self.history: History = {}

    def run_undisturbed(self, nodes: RayNodes) -> None:
        """What all others are compared with: one worker's in the driver's own process, several workers' on Ray."""
        if self.undisturbed is None:
            workers = 0 if self.workers == 1 else self.workers
            self.undisturbed = Ordeal(self.case, self.storage, workers, nodes).go()
            self.history = history_of(self.storage, self.undisturbed.answer["run_id"])

    def run(self, nodes: RayNodes, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, Any]:
        """A run under `count` kills that are drawn from `seed`: what was done to it, and every fault that was found."""
        self.run_undisturbed(nodes)
        assert self.undisturbed is not None
        kills = draw_kills(chance_of(seed, self.case), count, STEPS)
        start = time.time()
        came = Ordeal(self.case, self.storage, self.workers, nodes).go(kills, seed, say)
        run_id = str(came.answer["run_id"])
        faults = [f"weights: {name}" for name in differing_weights(self.storage, came.key, self.undisturbed.key)]
        faults += history_faults(history_of(self.storage, run_id), self.history)
        runs = runs_of(self.storage, came.key)
        if runs != [(run_id, "FINISHED")]:
            faults.append(f"MLflow has the runs {runs}, not one that is finished")
        if (versions := versions_of(self.storage, run_id)) != 1:
            faults.append(f"{versions} registered versions")
        faults += [f"left running: {what}" for what in left_running(nodes)]
        return {
            "case": self.case,
            "workers": self.workers,
            "seed": seed,
            "kills": [f"{kill.in_words()} (checkpoint of {step})" for kill, step in came.done],
            "missed": [kill.in_words() for kill in came.missed],
            "seconds": round(time.time() - start, 1),
            "faults": faults,
        }
