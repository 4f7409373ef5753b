"""Two workers on one GPU, which speak through NCCL as those of two machines do, against one: the same parameters.

    python -m pytest tests/gpu/test_two_ranks.py

With ATELIER_TEST_DEVICE=cpu two processes of the CPU stand in, which speak through gloo.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch

from pipeline.spec import make_spec
from pipeline.training import shared_memory
from pipeline.training.session import Session
from tests.conftest import prepared_in_memory
from tests.training.parity_cases import (
    ACCUMULATED,
    ROLLED,
    THAWING,
    SavedByOne,
    assert_same_trainings,
    save_end,
    spec_of,
)
from tests.training.two_processes import run_in_others

DEVICE = os.environ.get("ATELIER_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU"),
]

SHARDED = "sharded:"
CASES = ["vae-image", "vae-options-text", "gan-image-options", "gan-audio-options", "rnn-carried", "rnn-windows"]
CASES += [f"{ACCUMULATED}gan-audio", f"{THAWING}vae-image", f"{ROLLED}vae-image"]
CASES += [f"{SHARDED}{case}" for case in ("vae-image", "gan-audio-options", "gan-text", "rnn-carried")]


def _train(case: str, rank: int, world_size: int, folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    find_peers, shared_memory.find_peers = shared_memory.find_peers, lambda: None  # not the CPUs' own way
    try:
        tree = copy.deepcopy(spec_of(case.removeprefix(SHARDED)).as_dict())
        tree["training"]["sharding"] = "fsdp" if SHARDED in case and world_size > 1 else "none"
        spec = make_spec(tree)
        session = Session(spec, prepared_in_memory(spec), DEVICE, rank, world_size)
        session.run(SavedByOne(spec, folder / f"{case}-{world_size}" if rank == 0 else None))
        save_end(session, folder / f"{case}-{world_size}.safetensors")
    finally:
        torch.set_default_dtype(torch.float32)
        shared_memory.find_peers = find_peers


def _train_all(rank: int, folder: Path) -> None:
    for case in CASES:
        _train(case, rank, 2, folder)


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    run_in_others(_train_all, folder, backend="nccl" if DEVICE == "cuda" else "gloo")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(case: str, trained_by_two: Path, tmp_path: Path) -> None:
    whole = case.removeprefix(ACCUMULATED)
    _train(whole, 0, 1, tmp_path)
    assert_same_trainings(tmp_path / f"{whole}-1", trained_by_two / f"{case}-2")
