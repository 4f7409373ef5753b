"""Saving beside training: a thread writes, hashes and uploads a checkpoint while the next steps are taken.

Plain Python; rank 0 of every launcher writes. Its training thread copies the state and goes on.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pipeline.beside import Beside
from pipeline.spec import RunSpec
from pipeline.training.checkpoint import Position, State, take_state, write_state
from pipeline.training.course import Course
from pipeline.training.health import HealthWarning, note
from pipeline.training.shelf import Found, Shelf
from pipeline.training.steps import Stepper

if TYPE_CHECKING:
    from pipeline.release.recorder import RunRecorder


class Saver:
    """Puts the checkpoints of one run on its shelf, one at a time and in their order.

    One that comes while another is written waits for it: none is left out, no two copies of the state are held, and a
    storage that is slower than the checkpoints come slows the training, which `train/checkpoint_seconds` shows. What
    the recorder has not sent yet is saved too: no checkpoint waits for MLflow, and a resumed run, which reports from
    its checkpoint on, lacks nothing that came before. With `beside` false, `save` returns when it is there.
    """

    def __init__(self, shelf: Shelf, spec: RunSpec, recorder: RunRecorder | None = None, beside: bool = True) -> None:
        self.shelf, self.spec, self.recorder, self.beside = shelf, spec, recorder, beside
        self.last: int | None = None
        """The step of the last checkpoint that is there."""
        self._writing: Beside | None = None

    def save(self, stepper: Stepper, at: Position) -> None:
        """Copy the state and have it written; all ranks call it. Raises: StorageError, also of the one before."""
        self.wait()
        state = take_state(stepper)
        if state is None:
            return
        if self.recorder is not None:
            state = dataclasses.replace(state, unsent=self.recorder.unsent())
        self._writing = Beside(lambda: self._put(state, at))
        if not self.beside:
            self.wait()

    def check(self) -> None:
        """Raises: StorageError when what was written in the meantime failed; waits for nothing."""
        if self._writing is not None and not self._writing.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is there. Raises: StorageError when it cannot be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _put(self, state: State, at: Position) -> None:
        self.shelf.put(at.step, lambda folder: write_state(folder, state, at, self.spec))
        self.last = at.step


def refusal(found: Found, course: Course) -> HealthWarning | None:
    """What to say, each time, when a run goes on from an older checkpoint because newer ones were refused; noted in its
    course, alike on all ranks."""
    if not found.refused:
        return None
    step = found.step or 0
    message = f"{'; '.join(found.refused)}; going on from step {step:,}"
    said = note(course, "checkpoint_refused", message, step)
    return HealthWarning(said.kind, message, step, step, said.times)
