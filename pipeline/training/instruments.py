"""What a training tells of its machine: the parts of a step's time, peak memory, the model's operations, a trace.

Plain PyTorch, in every training worker, between the loop and the things that measure. All of it looks on: nothing here
changes a number of the training, draws randomness, or waits for a GPU between reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.training.flops import FlopCount, utilisation
from pipeline.training.peak_memory import peak_memory_mib
from pipeline.training.timing import PARTS
from pipeline.training.tracing import Trace

if TYPE_CHECKING:
    from pipeline.training.steps import Stepper


class Instruments:
    """Those of one rank, for one start of a training. As a context manager it ends a trace that is going on.

    The operations of a step are counted while one is taken, which makes that step slower by tens of milliseconds: not
    the first, for which somebody waits, but the one after the first report, and again after each validation, since
    what a step runs changes there, if it does.
    """

    def __init__(self, stepper: Stepper, trace: Trace | None = None) -> None:
        self.stepper, self.trace = stepper, trace
        self.timer = stepper.timer
        self.timer.restart()
        self.flops = 0
        self.counts_next, self.counted = False, False

    def __enter__(self) -> Instruments:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.trace is not None:
            self.trace.close()

    def part(self, name: str) -> AbstractContextManager[None]:
        """A block of the loop that is one of `timing.PARTS`."""
        return self.timer.part(name)

    def step(self, number: int) -> AbstractContextManager[None]:
        """The block in which step `number` is taken."""
        if self.trace is not None:
            self.trace.before_step(number)
        return self._counted() if self.counts_next else nullcontext()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with FlopCount() as count:
            yield
        self.flops, self.counts_next, self.counted = count.flops, False, True

    def take(self) -> list[float]:
        """This rank's measures since the last time, for `metrics`: to be averaged over ranks."""
        seconds, world_size = self.timer.take(), self.stepper.world_size
        # A place for each rank, of which a mean over ranks leaves all, divided by their number.
        memory = [0.0] * world_size
        memory[self.stepper.rank] = world_size * peak_memory_mib(self.stepper.device)
        return [*(seconds[part] for part in PARTS), float(self.flops), *memory]

    def metrics(self, taken: list[float], steps: int, elapsed: float) -> dict[str, float]:
        """What is reported of measures, averaged over ranks, of `steps` that took `elapsed` seconds."""
        spent, flops, memory = taken[: len(PARTS)], taken[len(PARTS)], taken[len(PARTS) + 1 :]
        alone = self.stepper.world_size == 1
        metrics = {
            f"time/{part}_seconds": seconds / steps
            for part, seconds in zip(PARTS, spent, strict=True)
            if not (alone and part == "communication")
        }
        metrics["train/peak_memory_mib"] = max(memory)
        if flops > 0:
            stepper, each = self.stepper, flops * steps / elapsed
            metrics["train/model_tflops_per_second"] = each * stepper.world_size / 1e12
            share = utilisation(stepper.model, stepper.half, stepper.device, each)
            if share is not None:
                metrics["train/mfu"] = share
        self.counts_next = self.counts_next or not self.counted
        return metrics

    def validated(self, steps: int) -> dict[str, float]:
        """What a validation took, said with the report that it belongs to."""
        self.counts_next = True
        return {"time/validation_seconds": self.timer.take_part("validation") / steps}

    def went_back(self) -> None:
        """A rollback: what was measured since the last report is of steps that do not count."""
        self.timer.restart()
