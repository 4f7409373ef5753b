"""Processes that train together in a process group: this one and another, or two or more others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

Work = Callable[[int, Path], None]
"""What a process does, by its rank, in a folder that both see; a function of a module, which the other imports."""
PRELOADED = ["torch._dynamo", "pipeline.training.session", "tests.conftest"]


def run_with_another(work: Work, folder: Path) -> None:
    """Do `work` here as rank 0, beside another process as rank 1, and wait for that."""
    other = _start(_work_as_second, (work, str(folder)), 1, join=False, daemon=True)
    _work(0, work, str(folder))
    while not other.join():
        continue


def run_in_others(work: Work, folder: Path, count: int = 2) -> None:
    """Do `work` in so many processes, and wait for them."""
    _start(_work, (work, str(folder), count), count)


def _start(target: Callable[..., None], arguments: tuple[Any, ...], count: int, **settings: bool) -> Any:
    """As `torch.multiprocessing.spawn`, from a process that has imported what all of them need: three seconds each."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    return multiprocessing.start_processes(target, arguments, count, start_method="forkserver", **settings)


def _work_as_second(number: int, work: Work, folder: str) -> None:
    _work(number + 1, work, folder)


def _work(rank: int, work: Work, folder: str, count: int = 2) -> None:
    torch.set_num_threads(1)
    where, timeout = f"file://{folder}/rendezvous", timedelta(minutes=2)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=count, timeout=timeout)
    work(rank, Path(folder))
    # A process that leaves while the other still speaks to it is ended by the one's threads.
    dist.barrier()
    dist.destroy_process_group()
