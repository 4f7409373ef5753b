"""Processes that train together in a process group."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

Work = Callable[[int, Path], None]
"""What a process does, by its rank, in a folder that both see; a function of a module, which the other imports."""


def run_in_others(work: Work, folder: Path, count: int = 2) -> None:
    """Do `work` in so many processes, and wait for them."""
    # Forked from one that has imported what all of them need: started anew, each took three seconds for that.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.training.preloaded"])
    multiprocessing.start_processes(_work, (work, str(folder), count), count, start_method="forkserver")


def _work(rank: int, work: Work, folder: str, count: int) -> None:
    torch.set_num_threads(1)
    where, timeout = f"file://{folder}/rendezvous", timedelta(minutes=2)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=count, timeout=timeout)
    work(rank, Path(folder))
    # A process that leaves while the other still speaks to it is ended by the one's threads.
    dist.barrier()
    dist.destroy_process_group()
