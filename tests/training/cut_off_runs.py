"""A tiny training in this process, as `num_workers: 0` trains, and one that was cut off after two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.progress import WARNING
from pipeline.spec import RunSpec
from pipeline.storage import open_store
from pipeline.training.checkpoint import Position
from pipeline.training.in_process import LocalHooks, train_in_process
from pipeline.training.session import Session
from tests.conftest import cell_spec, prepared_in_memory

RUN = "a-run"


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


def spec_of(**training: Any) -> RunSpec:
    return cell_spec("vae", "image", **{"ema_decay": 0.9, "checkpoint_every": 2, **training})


def session_of(spec: RunSpec, resume_from: Path | None = None) -> Session:
    return Session(spec, prepared_in_memory(spec), resume_from=resume_from)


def train(spec: RunSpec, storage: Path, warnings: list[str] | None = None) -> Any:
    """`spec` trained in this process, as `num_workers: 0` does, from what is in `storage`."""

    def progress(stage: str, done: int, total: int | None, note: str) -> None:
        if stage == WARNING and warnings is not None and "checkpoint_refused" in note:
            warnings.append(note)

    prepared = prepared_in_memory(spec)
    return train_in_process(spec, prepared, open_store(str(storage)), RUN, None, None, progress)


def folders(storage: Path) -> list[str]:
    return sorted(path.name for path in (storage / "training" / RUN).iterdir())


def cut_off(spec: RunSpec, storage: Path) -> Path:
    """A run of 6 steps cut off after its checkpoints of steps 2 and 4; the folder of the newest."""

    class KilledAtFive(LocalHooks):
        def report(self, at: Position, metrics: dict[str, float]) -> None:
            if at.step == 5:
                raise Killed

    with pytest.raises(Killed):
        session_of(spec).run(KilledAtFive(spec, storage / "training" / RUN))
    return storage / "training" / RUN / "step-00000004"


def flip(folder: Path, name: str = "weights.safetensors") -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
