"""Checkpoints: everything that a run needs to go on, in a folder of safetensors and one JSON.

Written by rank 0, read by every rank. Nothing is pickled, and each file's sha256 is in `state.json`, which is
written last: a checkpoint that was cut short or changed is found before it is trusted.
"""

from __future__ import annotations

import hashlib
import json
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
from pipeline.training.steps import Stepper
from pipeline.training.stopping import keeps_best

FORMAT = 1
STATE = "state.json"
FREE_TO_CHANGE = (
    ("storage",),
    ("tracking",),
    ("registry",),
    ("release",),
    ("evaluation",),
    ("data", "source", "path"),
    ("training", "steps"),
    ("training", "max_seconds"),
    ("training", "load"),
    ("training", "memory_megabytes"),
    ("training", "num_workers"),
    ("training", "sharding"),
    ("training", "channels_last"),
    ("training", "compile"),
    ("training", "tf32"),
    ("training", "threads_per_worker"),
    ("training", "use_gpu"),
    ("training", "report_every"),
    ("training", "checkpoint_every"),
    ("training", "validate_every"),
    ("training", "keep_checkpoints"),
    ("training", "max_failures"),
    ("training", "health"),
    ("training", "early_stopping"),
    ("training", "keep_best"),
)
"""Keys of the spec that may differ between a checkpoint and the run that resumes it."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: steps done and seconds spent in the loop."""

    step: int = 0
    seconds: float = 0.0


def save_checkpoint(folder: Path, stepper: Stepper, carry: tuple[Tensor, ...], at: Position, spec: RunSpec) -> None:
    """Write a checkpoint into `folder`; `carry` is `stepper.global_carry()`, which all ranks must call.

    Raises: StorageError (a full disk, permissions); what was written is then no checkpoint, for want of its state.
    """
    try:
        _write(folder, stepper, carry, at, spec)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{folder}: the checkpoint of step {at.step} cannot be written: {error}; free some space, or lower "
            "training.keep_checkpoints, and run the same command: it continues at the checkpoint before"
        ) from error


def _write(folder: Path, stepper: Stepper, carry: tuple[Tensor, ...], at: Position, spec: RunSpec) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "weights.safetensors": stepper.weights(),
        "average.safetensors": stepper.averages(),
        "optimizer.safetensors": stepper.optimizer_tensors(),
        "best.safetensors": stepper.best,
        "carry.safetensors": {str(number): part for number, part in enumerate(carry)},
    }
    digests = {}
    for name, tensors in files.items():
        # Safetensors refuses tensors that share memory, as tied weights do; a copy does not.
        save_file({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, folder / name)
        digests[name] = sha256_of(folder / name)
    state = {
        "format": FORMAT,
        "step": at.step,
        "seconds": at.seconds,
        "torch": torch.__version__,
        "spec": spec.as_dict(),
        "course": stepper.course.as_dict(),
        "sha256": digests,
    }
    temporary = folder / f"{STATE}.tmp"
    temporary.write_text(json.dumps(state, indent=1))
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
    stepper.best = tensors.get("best.safetensors", {})
    stepper.course = Course.from_dict(state.get("course", {}))
    if not keeps_best(spec.training):
        stepper.best = {}
    elif not stepper.best:
        # Kept from now on: the objectives before had no weights to go with them.
        stepper.course.best_objective = stepper.course.gained_from = None
        stepper.course.without_gain = 0
    return Position(state["step"], state["seconds"])


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
    """What `state.json` says. Raises: CheckpointError when it is missing, unreadable or of another format."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {STATE}, so this is no whole checkpoint; take an older one") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / STATE}: not valid JSON ({error}); take an older checkpoint") from None
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: checkpoint format {state.get('format')}, this version reads {FORMAT}")
    return state


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


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        if sha256_of(path) != digest:
            raise CheckpointError(f"{path}: its sha256 is not the one in {STATE}: it was changed; take an older one")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error}; take an older one") from None
