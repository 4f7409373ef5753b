"""Processes that train together in a process group: this one and another, or two or more others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

Work = Callable[[int, Path], None]
"""What a process does, by its rank, in a folder that both see; a function of a module, which the other imports."""


def run_with_another(work: Work, folder: Path) -> None:
    """Do `work` here as rank 0, beside another process as rank 1, and wait for that."""
    other = multiprocessing.spawn(_work_as_second, (work, str(folder)), nprocs=1, join=False, daemon=True)
    _work(0, work, str(folder))
    while not other.join():
        continue


def run_in_others(work: Work, folder: Path, count: int = 2) -> None:
    """Do `work` in so many processes, and wait for them."""
    multiprocessing.spawn(_work, (work, str(folder), count), nprocs=count)


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
