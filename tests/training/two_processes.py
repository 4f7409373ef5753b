"""Processes that train together in a process group."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

from tests.one_card import as_machine

Work = Callable[[int, Path], None]
"""What a process does, by its rank, in a folder that both see; a function of a module, which the other imports."""


def run_in_others(work: Work, folder: Path, count: int = 2, backend: str = "gloo") -> None:
    """Do `work` in so many processes, and wait for them; with `backend` nccl all of them on the first GPU."""
    # Forked from one that has imported what all of them need: started anew, each took three seconds for that.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.training.preloaded"])
    multiprocessing.start_processes(_work, (work, str(folder), count, backend), count, start_method="forkserver")


def _work(rank: int, work: Work, folder: str, count: int, backend: str) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":
        os.environ.update(as_machine(rank))
        torch.cuda.set_device(0)
    where, timeout = f"file://{folder}/rendezvous", timedelta(minutes=2)
    dist.init_process_group(backend, init_method=where, rank=rank, world_size=count, timeout=timeout)
    work(rank, Path(folder))
    # A process that leaves while the other still speaks to it is ended by the one's threads.
    dist.barrier()
    dist.destroy_process_group()
