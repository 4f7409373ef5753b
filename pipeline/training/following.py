"""Following a training: its reports as lines of progress, by a thread of the driver where rank 0 is elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.progress import WARNING, Progress
from pipeline.training.timing import parts_of

POLL_SECONDS = 0.5
NOT_SHOWN = (
    "train/lr",
    "train/examples_per_second",
    "train/steps_per_second",
    "train/data_wait_share",
    "train/checkpoint_seconds",
    "train/micro_batch",
    "train/peak_memory_mib",
    "train/model_tflops_per_second",
    "train/mfu",
)
"""Of the metrics of a report, those that progress says in other words or not at all."""
TELLING_WAIT = 0.05
"""The share of the time spent waiting for data from which on progress says so."""


class Follower:
    """A thread that shows what rank 0 tells while `fit` blocks, and while nothing is told what the cluster is `in_want`
    of, if of anything."""

    def __init__(
        self,
        run_key: str,
        steps: int,
        max_seconds: float | None,
        progress: Progress,
        in_want: Callable[[], str] = str,
    ) -> None:
        self.run_key, self.steps, self.max_seconds, self.progress = run_key, steps, max_seconds, progress
        self.in_want, self.said_want = in_want, ""
        self.first_step_at: float | None = None
        self.start_at: float | None = None
        """When the workers that run now took their first step: each start of them begins a list of warnings."""
        self.num_said = 0
        self.started = self.moved_at = time.time()
        self.told: dict[str, Any] = {}
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, name="atelier-progress", daemon=True)

    def __enter__(self) -> Follower:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _follow(self) -> None:
        from pipeline.training.worker import told

        while True:
            ending = self.stop.wait(POLL_SECONDS)
            values = told(self.run_key)
            moves, self.told = values != self.told, values
            if moves:
                self.moved_at = time.time()
            want = "" if moves or ending else self._want()
            if values and values["first_step_at"] and values["first_step_at"] >= self.started - 1:
                self.first_step_at = self.first_step_at or values["first_step_at"]
                if values["first_step_at"] != self.start_at:
                    self.start_at, self.num_said = values["first_step_at"], 0
                for message in values.get("warnings", [])[self.num_said :]:
                    self.progress(WARNING, 0, None, message)
                    self.num_said += 1
                steps = values["steps"]  # of which a limit by epochs may allow fewer than the spec
                note = want or describe(values, steps, self.max_seconds)
                self.progress("train", values["step"], steps, note)
            else:
                self.progress("train", 0, self.steps, want or self._waiting())
            if ending:
                return

    def _waiting(self) -> str:
        return f"waiting for Ray Train's workers, {time.time() - self.moved_at:.0f} s"

    def _want(self) -> str:
        """The line of a training that waits for nodes; what it waits for is said in full once, since a terminal cuts
        off a long line."""
        want = self.in_want()
        if want and want != self.said_want:
            self.progress(WARNING, 0, None, want)
        self.said_want = want
        return f"{self._waiting()}: {want}" if want else ""


def describe(values: dict[str, Any], steps: int, max_seconds: float | None) -> str:
    """One line of progress: speed, losses, time left, how long training waits for data when that is long, and how many
    examples go through the network at once where that was found."""
    metrics: dict[str, float] = values["metrics"]
    parts: list[str] = []
    if "train/examples_per_second" in metrics:
        parts.append(f"{metrics['train/examples_per_second']:,.0f} examples/s")
    shown = [(k, v) for k, v in metrics.items() if k.startswith("train/") and k not in NOT_SHOWN]
    parts += [f"{key.removeprefix('train/')} {value:.4g}" for key, value in shown[:3]]
    if metrics.get("train/data_wait_share", 0.0) >= TELLING_WAIT:
        parts.append(f"{metrics['train/data_wait_share']:.0%} of the time waiting for data")
    if "train/micro_batch" in metrics:
        parts.append(f"{metrics['train/micro_batch']:,.0f} at once")
    parts += largest_part(metrics)
    rate = metrics.get("train/steps_per_second", 0.0)
    if rate > 0:
        left = (steps - values["step"]) / rate
        if max_seconds is not None:
            left = min(left, max_seconds - values["seconds"])
        parts.append(f"{max(0.0, left):.0f} s left")
    return ", ".join(parts)


def largest_part(metrics: Mapping[str, float]) -> list[str]:
    """The largest part of the time since the last report, where it is neither the networks' nor waiting for data."""
    spent = parts_of(metrics)
    largest = max(spent, key=lambda part: spent[part], default="")
    if largest in ("", "data", "forward", "backward") or spent[largest] == 0:
        return []
    return [f"most of the time goes to {largest} ({spent[largest] / sum(spent.values()):.0%})"]
