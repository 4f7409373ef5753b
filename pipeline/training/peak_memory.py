"""The most memory that a training took, of the device that it computes on.

Plain PyTorch, in every training worker, at reports.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_memory_mib(device: torch.device) -> float:
    """The largest amount of memory so far, MiB: on a GPU what PyTorch held for tensors there at once (its cache and
    the driver's own come on top), on a CPU what the whole process had in memory, libraries and prepared data included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        # A process starts with its parent's peak in `ru_maxrss`; here it has its own.
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
