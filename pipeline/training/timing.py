"""Where the time of a training goes: every moment between two looks belongs to one part of a step, or of a report.

Plain PyTorch, in every training worker. A part that begins ends the time of the one around it, and the time of that
goes on when it ends: so the parts add up to the whole by construction, and what nobody claims is `other`. On a CPU the
moments are the clock's. On a GPU, which works behind the thread that asks, they are events in its stream, read only
when a report is due: a part there is the time from its beginning to its end on the device, waiting included, so that
a GPU that starves shows where.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

STEP_PARTS = ("data", "forward", "backward", "communication", "optimiser", "other")
"""Of a training step: waiting for its batches; the loss; its gradients; what is left of averaging them over the workers
when one's own are computed; clipping, the optimiser and the moving average; everything else."""
REPORT_PARTS = ("report", "validation", "recording", "checkpoint")
"""Between steps: bringing the means together over ranks; scores of the held-out split; handing the report on; saving
the state, as far as training waits for it."""
PARTS = STEP_PARTS + REPORT_PARTS
MOST_PENDING = 4096
"""Events of a GPU that wait to be read, some 400 KiB of them; beyond, those that are over are read on the way."""


class StepTimer:
    """Seconds by part, of the clock: for a CPU, where a call returns when its work is done.

    Parts nest; a part does not count what is within its inner ones. While a trace is recorded every part is a named
    range of it (`tracing`).
    """

    def __init__(self) -> None:
        self.tracing = False
        self._open = ["other"]
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._parts = {name: _Part(self, name) for name in PARTS}
        self._last: Any = None
        self.restart()

    def part(self, name: str, phase: str = "") -> AbstractContextManager[None]:
        """A block that is the part `name` of a step or a report, of a model's `phase`."""
        if self.tracing:
            return _TracedPart(self, name, f"{phase} {name}".strip())
        return self._parts[name]

    def watch(self, loss: Tensor) -> None:
        """Within the part `backward`, before `loss.backward()` of several workers: what comes after the last gradient
        is computed is the part `communication`.

        DistributedDataParallel sends gradients while others are still computed, and waits for the rest in a callback at
        the end of the backward pass. Callbacks run in the order in which they were asked for, and the loss is where
        the pass begins: one that is asked for there comes before DistributedDataParallel's. So this is the exposed part
        of communication, with the wait for a slower worker; what hides behind the computation costs nothing.
        """
        loss.register_hook(self._queue_end_of_computation)

    def take(self) -> dict[str, float]:
        """The seconds of each part since the last look; a GPU's work until now is waited for."""
        self._mark()
        self._read(wait=True)
        seconds, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return seconds

    def take_part(self, name: str) -> float:
        """Those of one part, which has ended."""
        self._read(wait=True)
        seconds, self._seconds[name] = self._seconds[name], 0.0
        return seconds

    def restart(self) -> None:
        """Forget what was measured: it belongs to steps that do not count."""
        self._last = time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def _queue_end_of_computation(self, gradient: Tensor) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(self._end_computation)

    def _end_computation(self) -> None:
        self._mark()
        self._open[-1] = "communication"

    def _mark(self) -> None:
        """The time since the last mark was of the part that is open."""
        now = time.perf_counter()
        self._seconds[self._open[-1]] += now - self._last
        self._last = now

    def _read(self, wait: bool) -> None:
        """Count what is not counted yet: nothing, of a clock."""


class DeviceTimer(StepTimer):
    """The same of a GPU: seconds between events in its stream. `make_event` gives one that times."""

    def __init__(self, device: torch.device, make_event: Callable[[], Any] | None = None) -> None:
        self.device = device
        self._make_event = make_event or (lambda: torch.cuda.Event(enable_timing=True))
        self._free: list[Any] = []
        self._pending: deque[tuple[str, Any]] = deque()
        super().__init__()

    def restart(self) -> None:
        self._free += [event for _, event in self._pending]
        self._pending.clear()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._last = self._now()

    def _now(self) -> Any:
        event = self._free.pop() if self._free else self._make_event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _mark(self) -> None:
        self._pending.append((self._open[-1], self._now()))
        if len(self._pending) > MOST_PENDING:
            self._read(wait=False)

    def _read(self, wait: bool) -> None:
        if wait and self._pending:
            self._pending[-1][1].synchronize()
        while self._pending and (wait or self._pending[0][1].query()):
            part, event = self._pending.popleft()
            self._seconds[part] += self._last.elapsed_time(event) / 1000
            self._free.append(self._last)
            self._last = event


class _Part:
    """Made once for each name and entered in every step."""

    __slots__ = ("name", "timer")

    def __init__(self, timer: StepTimer, name: str) -> None:
        self.timer, self.name = timer, name

    def __enter__(self) -> None:
        timer = self.timer
        timer._mark()
        timer._open.append(self.name)

    def __exit__(self, *_: object) -> None:
        timer = self.timer
        timer._mark()
        timer._open.pop()


class _TracedPart(_Part):
    """A part that is also a range of the trace, named after its phase."""

    __slots__ = ("range",)

    def __init__(self, timer: StepTimer, name: str, label: str) -> None:
        super().__init__(timer, name)
        self.range = torch.profiler.record_function(label)

    def __enter__(self) -> None:
        super().__enter__()
        self.range.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.range.__exit__(*error)
        super().__exit__()


def parts_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """The parts in reported metrics, `time/PART_seconds`: seconds a step."""
    found = {part: metrics.get(f"time/{part}_seconds") for part in PARTS}
    return {part: seconds for part, seconds in found.items() if seconds is not None}


def make_timer(device: torch.device) -> StepTimer:
    """The timer for what is computed on `device`."""
    return DeviceTimer(device) if device.type == "cuda" else StepTimer()
