"""A trace of a few training steps, for Perfetto: every operation, under the named parts of a step and of the model.

Plain PyTorch, in every training worker, where the spec asks for it (`training.profile`). Each rank writes a Chrome
trace (gzip) and a table of the operators that took longest; the hooks keep them with the run.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from pipeline.errors import StorageError, TrackingError
from pipeline.spec import ProfileSpec
from pipeline.storage import Store
from pipeline.training.timing import StepTimer

if TYPE_CHECKING:
    from pipeline.release.recorder import RunRecorder

WARM_UP = 2
"""Steps in which the profiler is on and nothing is kept: its own start is not the training's."""
MOST_OPERATORS = 40
FOLDER = "profile"

logger = logging.getLogger(__name__)


class Trace:
    """Records some steps of one rank, once, and gives the folder with what it wrote to `keep`."""

    def __init__(
        self,
        spec: ProfileSpec,
        steps_left: int,
        model: nn.Module,
        timer: StepTimer,
        device: torch.device,
        rank: int,
        keep: Callable[[Path], None],
    ) -> None:
        self.model, self.timer, self.device, self.rank, self.keep = model, timer, device, rank, keep
        self.steps = max(1, min(spec.steps, steps_left - WARM_UP))
        self.wait = max(0, min(spec.wait, steps_left - WARM_UP - self.steps))
        self.seen = 0
        self.profiler: Any = None
        self._hooks: list[Any] = []
        self._ranges: list[Any] = []

    def before_step(self, number: int) -> None:
        """Step `number` begins: begin to record, or end it, where it is time."""
        if self.seen == self.wait:
            with self.timer.part("recording"):
                self._begin(number + WARM_UP)
        elif self.profiler is not None:
            self.profiler.step()
            if self.seen == self.wait + WARM_UP + self.steps:
                self.close()
            else:
                self.timer.tracing = self.seen >= self.wait + WARM_UP
        self.seen += 1

    def close(self) -> None:
        """End what is going on, and keep what was recorded."""
        if self.profiler is None:
            return
        profiler, self.profiler, self.timer.tracing = self.profiler, None, False
        for hook in self._hooks:
            hook.remove()
        profiler.stop()

    def _begin(self, first: int) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)

        def ready(profiler: Any) -> None:
            self.timer.tracing = False
            with self.timer.part("recording"), tempfile.TemporaryDirectory() as folder:
                self._write(profiler, Path(folder), first)
                self.keep(Path(folder))

        for name, module in self.model.named_children():
            self._hooks.append(module.register_forward_pre_hook(self._opens(name)))
            self._hooks.append(module.register_forward_hook(self._closes))
        self.profiler = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=WARM_UP, active=self.steps, repeat=1),
            on_trace_ready=ready,
            record_shapes=True,
        )
        self.profiler.start()

    def _opens(self, name: str) -> Callable[..., None]:
        def opens(*_: Any) -> None:
            opened = record_function(f"module {name}")
            opened.__enter__()
            self._ranges.append(opened)

        return opens

    def _closes(self, *_: Any) -> None:
        self._ranges.pop().__exit__(None, None, None)

    def _write(self, profiler: Any, folder: Path, first: int) -> None:
        stem = f"step-{first:08d}-rank-{self.rank}"
        profiler.export_chrome_trace(str(folder / f"{stem}.json.gz"))
        order = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=MOST_OPERATORS, max_name_column_width=60)
        (folder / f"{stem}-operators.txt").write_text(table)


def keep_trace(folder: Path, store: Store, run_key: str, recorder: RunRecorder | None) -> None:
    """Put what a rank wrote into `folder` under `profile/` in the run's folder and, where there is a recorder, in
    MLflow. A trace that cannot be stored is said, and ends no training."""
    try:
        for path in sorted(folder.iterdir()):
            store.write_bytes(path.read_bytes(), "runs", run_key, FOLDER, path.name)
        if recorder is not None:
            recorder.log_folder(folder, FOLDER)
    except (StorageError, TrackingError) as error:
        logger.warning("the trace is not kept: %s", error)
