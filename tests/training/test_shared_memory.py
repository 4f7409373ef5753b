"""Ranks on one machine average their gradients in memory that they share; where they cannot, over the network."""

from __future__ import annotations

import gc
import os
import random
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from pipeline.training import shared_memory
from pipeline.training.holding import Holding, make_holding
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from pipeline.training.shared_memory import SharedHolding, find_peers
from tests.conftest import cell_spec, prepared_in_memory
from tests.training.two_processes import run_in_others

CPU = torch.device("cpu")


def make_gan_holding() -> Holding:
    spec = cell_spec("gan", "image")
    return make_holding(
        Session(spec, prepared_in_memory(spec)).stepper.model, spec.training, CPU, dist.get_world_size()
    )


def average_parts(rank: int, folder: Path) -> None:
    """One phase's gradients, then the other's, then the first's again: each rank leaves what it had and what it got.
    Before and after each meeting another rank is late."""
    holding = make_gan_holding()
    assert isinstance(holding, SharedHolding)
    meet, late = holding.peers.meet, random.Random(rank)

    def meet_late(number: int) -> None:
        time.sleep(late.choice([0, 0.1]))
        meet(number)
        time.sleep(late.choice([0, 0.1]))

    holding.peers.meet = meet_late  # type: ignore[method-assign]
    critic = [name for name in holding.own if name.startswith("critic")]
    others = [name for name in holding.own if name not in critic]
    generator, tensors = torch.Generator().manual_seed(rank), {}
    for turn, names in enumerate((critic, others, critic)):
        for name in names:
            parameter = holding.own[name]
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            tensors[f"{turn}/had/{name}"] = parameter.grad.clone()
        holding.settle_gradients(names)
        tensors |= {f"{turn}/got/{name}": holding.own[name].grad.clone() for name in names}  # type: ignore[union-attr]
    save_file(tensors, folder / f"{rank}.safetensors")


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_gets_the_same_bits_of_the_mean(ranks: int, tmp_path: Path) -> None:
    run_in_others(average_parts, tmp_path, ranks)
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(ranks)]
    got = [name for name in found[0] if "/got/" in name]
    assert len(got) > 10
    for name in got:
        total = found[0][name.replace("got", "had")].clone()
        for tensors in found[1:]:
            total += tensors[name.replace("got", "had")]
        for tensors in found:
            assert torch.equal(tensors[name], total / ranks)


def begin_with_others_weights(rank: int, folder: Path) -> None:
    spec = cell_spec("vae", "image")
    model = Session(spec, prepared_in_memory(spec)).stepper.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += rank
    make_holding(model, spec.training, CPU, 2)
    save_file({name: p.detach() for name, p in model.named_parameters()}, folder / f"{rank}.safetensors")


def test_all_begin_with_the_weights_of_the_first(tmp_path: Path) -> None:
    run_in_others(begin_with_others_weights, tmp_path)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(second[name], value) for name, value in first.items())


def train_where_the_second_is_elsewhere(rank: int, folder: Path) -> None:
    def not_here(name: bytes) -> socket.socket:
        raise ConnectionRefusedError

    if rank == 1:
        shared_memory._connect = not_here  # a process of its own, which ends with this
    spec = cell_spec("gan", "image", steps=5)
    session = Session(spec, prepared_in_memory(spec), rank=rank, world_size=2)
    assert type(session.stepper.holding) is Holding
    session.run(LocalHooks(spec))
    if rank == 0:
        save_file(session.stepper.state.weights(), folder / "two.safetensors")


def test_ranks_of_several_machines_train_the_same_over_the_network(tmp_path: Path) -> None:
    run_in_others(train_where_the_second_is_elsewhere, tmp_path)
    spec = cell_spec("gan", "image", steps=5)
    session = Session(spec, prepared_in_memory(spec))
    session.run(LocalHooks(spec))
    two = load_file(tmp_path / "two.safetensors")
    for name, value in session.stepper.state.weights().items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)


def lose_the_last(rank: int, folder: Path) -> None:
    """The last of three ranks ends at once, as a killed one does; the others are told, though neither ends."""
    peers = find_peers()
    assert peers is not None
    peers.meet()
    if rank < 2:
        with pytest.raises(ConnectionError, match=rf"another training worker has gone.*rank {rank}"):
            peers.meet()
        (folder / f"told-{rank}").touch()
        until = time.monotonic() + 60
        while len(list(folder.glob("told-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(list(folder.glob("told-*"))) == 2
    os._exit(0)


def test_a_worker_that_has_gone_ends_the_wait_of_the_others(tmp_path: Path) -> None:
    run_in_others(lose_the_last, tmp_path, 3)
    assert {path.name for path in tmp_path.glob("told-*")} == {"told-0", "told-1"}


def reach_other_parameters(rank: int, folder: Path) -> None:
    holding = make_gan_holding()
    names = [name for name in holding.own if name.startswith("critic")]
    for name in names[rank:]:
        holding.own[name].grad = torch.ones_like(holding.own[name])
    with pytest.raises(RuntimeError, match="gradients of different parameters"):
        holding.settle_gradients(names)
    (folder / f"told-{rank}").touch()


def test_gradients_of_different_parameters_are_not_mixed_up(tmp_path: Path) -> None:
    run_in_others(reach_other_parameters, tmp_path)
    assert len(list(tmp_path.glob("told-*"))) == 2


def meet_a_stranger(rank: int, folder: Path) -> None:
    shared_memory._is_ours = lambda connection: False
    assert find_peers() is None
    (folder / f"alone-{rank}").touch()


def test_processes_of_different_users_go_over_the_network(tmp_path: Path) -> None:
    run_in_others(meet_a_stranger, tmp_path)
    assert len(list(tmp_path.glob("alone-*"))) == 2


def wait_for_a_slow_one(rank: int, folder: Path) -> None:
    spec = cell_spec("vae", "image", steps=3, report_every=3)
    session = Session(spec, prepared_in_memory(spec), rank=rank, world_size=2)
    stepper, backward = session.stepper, session.stepper._backward

    def slow(*arguments: Any) -> None:
        backward(*arguments)
        with stepper.timer.part("backward"):
            time.sleep(0.5 * rank)

    stepper._backward = slow  # type: ignore[method-assign]
    for step in range(2):
        stepper.step(step, session.batches, 0.0)
        seconds = stepper.timer.take()
    save_file({name: torch.tensor(value) for name, value in seconds.items()}, folder / f"{rank}.safetensors")


def test_the_wait_for_a_slower_worker_is_communication(tmp_path: Path) -> None:
    run_in_others(wait_for_a_slow_one, tmp_path)
    fast, slow = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert fast["communication"] > 0.4 > fast["backward"]
    assert slow["backward"] > 0.4 > slow["communication"]


def leave_no_file_open(rank: int, folder: Path) -> None:
    def opened() -> list[int]:
        paths = [path for path in Path("/proc/self/fd").iterdir() if path.exists()]
        return [int(path.name) for path in paths if "atelier-gradients" in os.readlink(path)]

    holding = make_gan_holding()
    assert isinstance(holding, SharedHolding)
    # The mapping's own; a program that is started meanwhile does not keep it.
    assert len(opened()) == 1 and not os.get_inheritable(opened()[0])
    sockets = holding.peers.connections
    del holding
    gc.collect()
    assert not opened()
    assert all(connection.fileno() == -1 for connection in sockets)
    (folder / f"closed-{rank}").touch()


def test_a_session_that_has_ended_leaves_nothing_open(tmp_path: Path) -> None:
    run_in_others(leave_no_file_open, tmp_path)
    assert len(list(tmp_path.glob("closed-*"))) == 2
