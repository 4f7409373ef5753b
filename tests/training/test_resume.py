"""A run that is cut off and resumed ends with the same weights, bit for bit; damaged checkpoints are refused."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from pipeline.errors import CheckpointError, NonFiniteLossError, StorageError
from pipeline.spec import RunSpec, make_spec
from pipeline.training.checkpoint import Position, load_checkpoint
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from pipeline.training.steps import Stepper
from tests.conftest import CELLS, MODALITIES, cell_spec, gan_with_options, lane_spec, prepared_in_memory, window_spec
from tests.saved_checkpoints import local_checkpoints

CASES = ["rnn-carried", "rnn-windows"] + [f"{family}-{modality}" for family, modality in CELLS]
CASES += [f"gan-{modality}-options" for modality in MODALITIES]


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


class KilledAfter(LocalHooks):
    """Hooks that end the run after its first checkpoint, a step later than was saved."""

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        super().report(at, metrics)
        if self.folder is not None and local_checkpoints(self.folder):
            raise Killed


def _spec(case: str, **training: object) -> RunSpec:
    settings = {"ema_decay": 0.9, "clip_norm": 1.0, "weight_decay": 0.01, **training}
    if case == "rnn-carried":
        return lane_spec(**settings)
    if case == "rnn-windows":
        return window_spec(**settings)
    family, modality, *options = case.split("-")
    if options:
        return gan_with_options(modality, **settings)
    return cell_spec(family, modality, **settings)


def _session(spec: RunSpec, resume_from: Path | None = None) -> Session:
    return Session(spec, prepared_in_memory(spec), resume_from=resume_from)


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(case: str, tmp_path: Path) -> None:
    spec = _spec(case)
    whole = _session(spec)
    whole.run(LocalHooks(spec))

    with pytest.raises(Killed):
        _session(spec).run(KilledAfter(spec, tmp_path))
    (saved,) = local_checkpoints(tmp_path)
    resumed = _session(spec, saved)
    assert resumed.start.step == 3
    end = resumed.run(LocalHooks(spec))

    assert end.step == spec.training.steps
    expected = whole.stepper.state.weights() | {f"average {n}": v for n, v in whole.stepper.state.average.items()}
    seen = resumed.stepper.state.weights() | {f"average {n}": v for n, v in resumed.stepper.state.average.items()}
    for name, value in expected.items():
        assert torch.equal(seen[name], value), f"{name} differs"


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "sgd"])
def test_every_optimizer_resumes(optimizer: str, tmp_path: Path) -> None:
    spec = _spec("vae-image", optimizer=optimizer, momentum=0.9 if optimizer in ("sgd", "rmsprop") else 0.0)
    whole = _session(spec)
    whole.run(LocalHooks(spec))
    with pytest.raises(Killed):
        _session(spec).run(KilledAfter(spec, tmp_path))
    resumed = _session(spec, local_checkpoints(tmp_path)[0])
    resumed.run(LocalHooks(spec))
    for name, value in whole.stepper.state.weights().items():
        assert torch.equal(resumed.stepper.state.weights()[name], value)


def _saved(tmp_path: Path) -> tuple[RunSpec, Path]:
    spec = _spec("vae-image")
    _session(spec).run(LocalHooks(spec, tmp_path))
    return spec, local_checkpoints(tmp_path)[-1]


def test_changed_byte_in_a_checkpoint_is_found(tmp_path: Path) -> None:
    spec, folder = _saved(tmp_path)
    file = folder / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: its sha256"):
        _session(spec, folder)


def test_checkpoint_cut_short_is_found(tmp_path: Path) -> None:
    spec, folder = _saved(tmp_path)
    (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no state\.json"):
        _session(spec, folder)


def test_checkpoint_of_another_spec_is_refused_with_the_keys(tmp_path: Path) -> None:
    spec, folder = _saved(tmp_path)
    tree = spec.as_dict()
    tree["model"]["family"]["latent_size"] = 5
    other = make_spec(tree)
    with pytest.raises(CheckpointError, match=r"model\.family\.latent_size was 4, is 5"):
        load_checkpoint(folder, _session(other).stepper, other)


def test_full_disk_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _spec("vae-image")
    written: list[str] = []

    def full(tensors: object, path: Path) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(str(path))
        Path(path).write_bytes(b"half")

    monkeypatch.setattr("pipeline.training.checkpoint.save_file", full)
    with pytest.raises(StorageError, match=r"the checkpoint of step 3 cannot be written: .*No space left"):
        _session(spec).run(LocalHooks(spec, tmp_path))
    assert written
    assert list(tmp_path.iterdir()) == []


def test_more_steps_and_a_wish_for_more_workers_are_no_other_spec(tmp_path: Path) -> None:
    spec, folder = _saved(tmp_path)
    tree = spec.as_dict()
    tree["training"] |= {"steps": 9, "num_workers": 2}
    assert _session(make_spec(tree), folder).start.step == 6


def test_loss_that_is_not_finite_names_phase_and_step_and_leaves_the_weights(tmp_path: Path) -> None:
    spec = _spec("vae-image")
    session = _session(spec)
    stepper: Stepper = session.stepper
    before = {name: value.clone() for name, value in stepper.state.weights().items()}
    original = session.batches.batch

    def poisoned(number: int):  # type: ignore[no-untyped-def]
        batch = original(number)
        batch.x[0] = float("nan")
        return batch

    session.batches.batch = poisoned  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match=r"phase 'model' is nan at step 0 \(rank 0\) on rows"):
        session.run(LocalHooks(spec))
    for name, value in before.items():
        assert torch.equal(stepper.state.weights()[name], value)
