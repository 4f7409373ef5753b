"""Two workers of batch B are one worker of batch 2 B, and micro-batches one pass of all: the same parameters after 20
steps, for every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.training import shared_memory
from pipeline.training.session import Session
from pipeline.training.shared_memory import SharedHolding
from tests.conftest import prepared_in_memory
from tests.made_once import made_once
from tests.saved_checkpoints import local_checkpoints
from tests.training.parity_cases import (
    ACCUMULATED,
    CASES,
    ROLLED,
    SINGLE,
    STEPS,
    STOPPED,
    THAWING,
    SavedByOne,
    save_end,
    spec_of,
)
from tests.training.two_processes import run_in_others

NETWORK = "network:"
"""Cases whose workers average their gradients over the network, as those of several machines do."""
OVER_NETWORK = ["vae-image", "gan-audio-options", "rnn-carried", f"{THAWING}gan-audio", f"{ROLLED}{THAWING}vae-image"]
RESUMED = ["vae-image", "gan-audio-options", "rnn-carried", f"{THAWING}gan-audio"]
"""Cases that go on from a checkpoint of one worker with two, and the other way round."""
OVER_NETWORK += [f"{ACCUMULATED}gan-image-options", f"{ACCUMULATED}{ROLLED}rnn-carried"]


def _train(case: str, rank: int, world_size: int, folder: Path, resume_from: Path | None = None) -> None:
    torch.set_default_dtype(torch.float32 if case.startswith(SINGLE) else torch.float64)
    find_peers = shared_memory.find_peers
    try:
        if case.startswith(NETWORK):
            shared_memory.find_peers = lambda: None
        spec = spec_of(case.removeprefix(NETWORK))
        prepared = prepared_in_memory(spec)
        session = Session(spec, prepared, rank=rank, world_size=world_size, resume_from=resume_from)
        saves = rank == 0 and case in RESUMED
        end = session.run(SavedByOne(spec, folder / f"{case}-{world_size}" if saves else None))
        assert world_size == 1 or isinstance(session.stepper.holding, SharedHolding) != case.startswith(NETWORK)
    finally:
        torch.set_default_dtype(torch.float32)
        shared_memory.find_peers = find_peers
    assert end.step == (8 if STOPPED in case else STEPS)
    assert len(session.stepper.course.rollbacks) == (ROLLED in case)
    save_end(session, folder / f"{case}-{world_size}.safetensors")


def _train_all(rank: int, folder: Path) -> None:
    for case in (*CASES, *(NETWORK + case for case in OVER_NETWORK)):
        _train(case, rank, 2, folder)
    for case in RESUMED:
        if rank == 0:
            _train(case, 0, 1, folder)
        torch.distributed.barrier()
        _train(case, rank, 2, folder / "resumed", _half_way(folder, case, 1))


def _half_way(folder: Path, case: str, workers: int) -> Path:
    """The checkpoint before the last of a case in `folder`."""
    found = local_checkpoints(folder / f"{case}-{workers}")[0]
    assert found.name == f"step-{STEPS - 2:08d}"
    return found


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained by two processes, started once."""
    return made_once(tmp_path_factory, "parity", lambda folder: run_in_others(_train_all, folder))


@pytest.mark.parametrize("case", CASES)
def test_two_workers_equal_one(case: str, trained_by_two: Path, tmp_path: Path) -> None:
    _train(case, 0, 1, tmp_path)
    _assert_equal(load_file(trained_by_two / f"{case}-2.safetensors"), load_file(tmp_path / f"{case}-1.safetensors"))


@pytest.mark.parametrize("case", OVER_NETWORK)
def test_over_the_network_it_is_the_same(case: str, trained_by_two: Path, tmp_path: Path) -> None:
    # What one worker takes in one pass two take in parts, and so it must be.
    whole = case.removeprefix(ACCUMULATED)
    _train(whole, 0, 1, tmp_path)
    seen = load_file(trained_by_two / f"{NETWORK}{case}-2.safetensors")
    _assert_equal(seen, load_file(tmp_path / f"{whole}-1.safetensors"))


@pytest.mark.parametrize("case", RESUMED)
def test_another_number_of_workers_goes_on_from_a_checkpoint(case: str, trained_by_two: Path, tmp_path: Path) -> None:
    whole = load_file(trained_by_two / f"{case}-1.safetensors")
    _train(case, 0, 1, tmp_path, _half_way(trained_by_two, case, 2))
    _assert_equal(load_file(tmp_path / f"{case}-1.safetensors"), whole)
    _assert_equal(load_file(trained_by_two / "resumed" / f"{case}-2.safetensors"), whole)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(ACCUMULATED)])
@pytest.mark.parametrize("workers", [1, 2])
def test_gradients_of_micro_batches_add_up_to_those_of_one_pass(
    case: str, workers: int, trained_by_two: Path, tmp_path: Path
) -> None:
    whole = case.removeprefix(ACCUMULATED)
    if workers == 1:
        _train(case, 0, 1, tmp_path)
    seen = load_file((tmp_path if workers == 1 else trained_by_two) / f"{case}-{workers}.safetensors")
    _train(whole, 0, 1, tmp_path)
    _assert_equal(seen, load_file(tmp_path / f"{whole}-1.safetensors"))


def _assert_equal(seen: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value, rtol=0, atol=1e-5)
