"""Parameters in shards train as whole ones do, and leave the same checkpoints: two processes against one."""

from __future__ import annotations

import copy
import weakref
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import SpecError
from pipeline.spec import RunSpec, make_spec
from pipeline.training import sharding
from pipeline.training.session import Session
from tests.conftest import prepared_in_memory
from tests.made_once import made_once
from tests.saved_checkpoints import local_checkpoints
from tests.training.parity_cases import (
    ROLLED,
    SINGLE,
    STOPPED,
    THAWING,
    SavedByOne,
    assert_same_trainings,
    save_end,
    spec_of,
)
from tests.training.two_processes import run_in_others

IN_BLOCKS = "in-blocks:"
"""Cases in which every block is put together by itself, however small."""
CASES = ["vae-image", "vae-text", "gan-audio", "gan-text", "rnn-image", "rnn-carried", "rnn-windows"]
CASES += ["vae-options-image", "vae-options-text", "gan-image-options", "gan-text-options", "gan-audio-options"]
CASES += [f"{IN_BLOCKS}{case}" for case in ("vae-image", "vae-text", "rnn-carried", "rnn-windows", "gan-text-options")]
CASES += [f"{THAWING}vae-image", f"{THAWING}rnn-carried", f"{ROLLED}vae-image", f"{STOPPED}{IN_BLOCKS}vae-image"]
CASES += [f"{SINGLE}vae-image"]
FLATTENED = "flattened:"
"""Cases in which recurrent layers move their weights when they see that these are others, as on a GPU, for cuDNN."""
CASES += [f"{FLATTENED}rnn-carried", f"{FLATTENED}{IN_BLOCKS}rnn-windows"]
RESUMED = ["vae-image", "gan-audio", "rnn-carried"]


def _spec(case: str, sharding: str) -> RunSpec:
    tree = copy.deepcopy(spec_of(case.replace(IN_BLOCKS, "").replace(FLATTENED, "")).as_dict())
    tree["training"]["sharding"] = sharding
    return make_spec(tree)


def _train(case: str, rank: int, world_size: int, folder: Path, resume_from: Path | None = None) -> None:
    torch.set_default_dtype(torch.float32 if case.startswith(SINGLE) else torch.float64)
    least, sharding.LEAST_PARAMETERS = sharding.LEAST_PARAMETERS, 0 if IN_BLOCKS in case else 10**9
    moves = mock.patch.object(nn.RNNBase, "flatten_parameters", _moved) if FLATTENED in case else nullcontext()
    try:
        spec = _spec(case, "fsdp" if world_size > 1 else "none")
        prepared = prepared_in_memory(spec)
        session = Session(spec, prepared, rank=rank, world_size=world_size, resume_from=resume_from)
        hooks = SavedByOne(spec, folder / f"{case}-{world_size}" if rank == 0 else None)
        with moves:
            session.run(hooks)
        if world_size > 1:
            _look_at_what_is_held(session)
        save_end(session, folder / f"{case}-{world_size}.safetensors")
    finally:
        torch.set_default_dtype(torch.float32)
        sharding.LEAST_PARAMETERS = least


def _moved(layer: nn.RNNBase) -> None:
    """Weights are brought into memory of their own."""
    for parameter in layer.parameters():
        parameter.data = parameter.data.clone()


def _look_at_what_is_held(session: Session) -> None:
    """While a checkpoint is gathered rank 0 has all of the state, and the other one tensor of it at a time."""
    state, gathered = session.stepper.state, []
    holding = state.holding
    assert isinstance(holding, sharding.ShardedHolding)
    whole = holding.whole

    def watched(name: str, value: torch.Tensor) -> torch.Tensor:
        held = sum(one() is not None for one in gathered)
        assert held == (len(gathered) if state.rank == 0 else 0)
        tensor = whole(name, value)
        if name in holding.spread:
            gathered.append(weakref.ref(tensor))
        return tensor

    holding.whole = watched  # type: ignore[method-assign]
    with state.gathered():
        assert len(gathered) >= len(holding.spread)
    holding.whole = whole  # type: ignore[method-assign]


def _train_all(rank: int, folder: Path) -> None:
    for case in CASES:
        _train(case, rank, 2, folder)
    for case in RESUMED:
        if rank == 0:
            _train(case, 0, 1, folder)
        torch.distributed.barrier()
        _train(case, rank, 2, folder / "resumed", resume_from=local_checkpoints(folder / f"{case}-1")[0])


@pytest.fixture(scope="module")
def trained_in_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained by two processes, started once."""
    return made_once(tmp_path_factory, "shards", lambda folder: run_in_others(_train_all, folder))


@pytest.mark.parametrize("case", CASES)
def test_two_workers_with_shards_equal_one(case: str, trained_in_shards: Path, tmp_path: Path) -> None:
    _train(case, 0, 1, tmp_path)
    assert_same_trainings(tmp_path / f"{case}-1", trained_in_shards / f"{case}-2")


@pytest.mark.parametrize("case", RESUMED)
def test_checkpoints_go_on_with_shards_and_without(case: str, trained_in_shards: Path, tmp_path: Path) -> None:
    expected = load_file(trained_in_shards / f"{case}-1.safetensors")
    by_one, by_two = (local_checkpoints(trained_in_shards / f"{case}-{size}")[0] for size in (1, 2))
    assert by_one.name == by_two.name == "step-00000018"
    _train(case, 0, 1, tmp_path, resume_from=by_two)
    for folder, size in ((tmp_path, 1), (trained_in_shards / "resumed", 2)):
        seen = load_file(folder / f"{case}-{size}.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(seen[name], value, rtol=0, atol=1e-5)


def test_what_does_not_go_with_shards_is_refused() -> None:
    tree = spec_of("vae-image").as_dict()
    for key, value in (("compile", True), ("channels_last", True)):
        with pytest.raises(SpecError, match=f"leave out {key}, or sharding"):
            make_spec({**tree, "training": {**tree["training"], "sharding": "fsdp", key: value}})
