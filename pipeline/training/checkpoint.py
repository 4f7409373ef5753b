"""Checkpoints: everything that a run needs to go on, in a folder of safetensors and one JSON.

Taken by every rank, written by rank 0, read by every rank. Nothing is pickled. Each file's sha256 is in `state.json`,
which is written last and has its own: a checkpoint that was cut short or changed is found before it is trusted. What a
checkpoint holds is copied first and written afterwards, so that another thread can write while training goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import CheckpointError, StorageError
from pipeline.spec import RunSpec
from pipeline.training.course import Course
from pipeline.training.state import copied
from pipeline.training.steps import Stepper
from pipeline.training.stopping import keeps_best

FORMAT = 1
STATE = "state.json"
OWN_DIGEST = "state_sha256"
"""In `state.json`, the sha256 of all else in it."""
FREE_TO_CHANGE = (
    ("storage",),
    ("tracking",),
    ("registry",),
    ("release",),
    ("evaluation",),
    ("data", "source", "path"),
    ("training", "steps"),
    ("training", "max_seconds"),
    ("training", "epochs"),
    ("training", "micro_batch"),
    ("training", "load"),
    ("training", "memory_megabytes"),
    ("training", "num_workers"),
    ("training", "resize_seconds"),
    ("training", "stop_seconds"),
    ("training", "sharding"),
    ("training", "channels_last"),
    ("training", "compile"),
    ("training", "tf32"),
    ("training", "threads_per_worker"),
    ("training", "placement"),
    ("training", "use_gpu"),
    ("training", "report_every"),
    ("training", "checkpoint_every"),
    ("training", "checkpoint_minutes"),
    ("training", "validate_every"),
    ("training", "keep_checkpoints"),
    ("training", "max_failures"),
    ("training", "health"),
    ("training", "early_stopping"),
    ("training", "keep_best"),
    ("training", "profile"),
)
"""Keys of the spec that may differ between a checkpoint and the run that resumes it."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: steps done and seconds spent in the loop."""

    step: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class State:
    """What a checkpoint holds of a stepper, in the host's memory and apart from it: the tensors of each file, and the
    course as JSON; and the metric points that MLflow has not been sent yet (see `RunRecorder.unsent`)."""

    tensors: dict[str, dict[str, Tensor]]
    course: dict[str, Any]
    unsent: Sequence[Sequence[Any]] = ()


def take_state(stepper: Stepper) -> State | None:
    """Copy what a checkpoint holds; a collective, within `stepper.state.gathered()`. Rank 0, which writes it, gets the
    state, and the others None."""
    carry = stepper.state.global_carry()
    if stepper.rank != 0:
        return None
    tensors = {
        "weights.safetensors": copied(stepper.state.weights()),
        "average.safetensors": copied(stepper.state.averages()),
        "optimizer.safetensors": copied(stepper.state.optimizer_tensors()),
        # Kept in the host's memory, and replaced by the next best, never changed: it needs no copy.
        "best.safetensors": stepper.state.best,
        "carry.safetensors": copied({str(number): part for number, part in enumerate(carry)}),
    }
    return State(tensors, stepper.course.as_dict())


def write_state(folder: Path, state: State, at: Position, spec: RunSpec) -> None:
    """Write a checkpoint into `folder`, and wait until the disk has it.

    Raises: StorageError (a full disk, permissions); what was written is then no checkpoint, for want of its state.
    """
    try:
        _write(folder, state, at, spec)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{folder}: the checkpoint of step {at.step} cannot be written: {error}; free some space, or lower "
            "training.keep_checkpoints, and run the same command: it continues at the checkpoint before"
        ) from error


def _write(folder: Path, state: State, at: Position, spec: RunSpec) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    for name, tensors in state.tensors.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
    values = {
        "format": FORMAT,
        "step": at.step,
        "seconds": at.seconds,
        "torch": torch.__version__,
        "spec": spec.as_dict(),
        "course": state.course,
        "unsent": state.unsent,
        "sha256": digests,
    }
    temporary = folder / f"{STATE}.tmp"
    with temporary.open("w") as file:
        json.dump({**values, OWN_DIGEST: _digest_of(values)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / STATE)


def load_checkpoint(folder: Path, stepper: Stepper, spec: RunSpec) -> Position:
    """Bring `stepper` to where the checkpoint in `folder` stands.

    Raises: CheckpointError when it is damaged, of another format, or of a spec that differs in more than
    storage, recording, limits and workers.
    """
    state = read_state(folder)
    differing = spec_differences(state["spec"], spec.as_dict())
    if differing:
        raise CheckpointError(
            f"{folder}: the checkpoint is of another spec: {'; '.join(differing[:5])}; give the run another name, or "
            "put these keys back"
        )
    tensors = {name: _read(folder / name, digest) for name, digest in state["sha256"].items()}
    carry = tensors["carry.safetensors"]
    stepper.load(
        tensors["weights.safetensors"],
        tensors["average.safetensors"],
        tensors["optimizer.safetensors"],
        tuple(carry[str(number)] for number in range(len(carry))),
    )
    # A checkpoint from before there were these has neither.
    stepper.state.best = tensors.get("best.safetensors", {})
    stepper.course = Course.from_dict(state.get("course", {}))
    if not keeps_best(spec.training):
        stepper.state.best = {}
    elif not stepper.state.best and stepper.course.best_objective is not None:
        # Kept from now on: the objectives before had no weights to go with them. Where none was a number there is no
        # best to be missing, and the validations without a gain count on.
        stepper.course.best_objective = stepper.course.gained_from = None
        stepper.course.without_gain = 0
    return Position(state["step"], state["seconds"])


def unsent_points(folder: Path | None) -> list[list[Any]]:
    """The metric points that MLflow had not been sent when the checkpoint in `folder` was taken."""
    # A checkpoint from before they were kept has none.
    return [] if folder is None else list(read_state(folder).get("unsent", []))


def load_scoring_weights(folder: Path) -> dict[str, Tensor]:
    """The weights for scores and samples from a checkpoint: those of the best validation where they were kept, else
    the last ones, averaged where there is an average."""
    state = read_state(folder)
    if digest := state["sha256"].get("best.safetensors"):
        best = _read(folder / "best.safetensors", digest)
        if best:
            return best
    weights = _read(folder / "weights.safetensors", state["sha256"]["weights.safetensors"])
    return {**weights, **_read(folder / "average.safetensors", state["sha256"]["average.safetensors"])}


def read_state(folder: Path) -> dict[str, Any]:
    """What `state.json` says. Raises: CheckpointError when it is missing, unreadable, changed or of another format."""
    try:
        state: Any = json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {STATE}, so this is no whole checkpoint; take an older one") from None
    except OSError as error:
        raise CheckpointError(f"{folder / STATE}: cannot be read: {error}; take an older checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / STATE}: not valid JSON ({error}); take an older checkpoint") from None
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{folder}: checkpoint format {found}, this version reads {FORMAT}")
    # A checkpoint from before there was one has no digest of its own.
    if (digest := state.pop(OWN_DIGEST, None)) is not None and digest != _digest_of(state):
        raise CheckpointError(f"{folder / STATE}: its sha256 is not the one in it: it was changed; take an older one")
    return dict(state)


def verify(folder: Path) -> None:
    """Look whether a checkpoint is whole and as it was written. Raises: CheckpointError."""
    for name, digest in read_state(folder)["sha256"].items():
        _check(folder / name, digest)


def spec_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Dotted keys whose values differ and are not free to change, each with both values."""
    found: list[str] = []

    def walk(old: Any, new: Any, path: tuple[str, ...]) -> None:
        if path in FREE_TO_CHANGE:
            return
        if isinstance(old, dict) and isinstance(new, dict):
            for key in sorted(old.keys() | new.keys()):
                walk(old.get(key), new.get(key), (*path, key))
        elif old != new:
            found.append(f"{'.'.join(path)} was {old!r}, is {new!r}")

    walk(before, now, ())
    return found


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _check(path: Path, digest: str) -> None:
    try:
        seen = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error}; take an older one") from None
    if seen != digest:
        raise CheckpointError(f"{path}: its sha256 is not the one in {STATE}: it was changed; take an older one")


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    _check(path, digest)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error}; take an older one") from None
