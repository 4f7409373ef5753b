"""How a GPU multiplies numbers of single precision while a training runs: said on purpose, and put back afterwards.

Plain PyTorch, in every training worker. PyTorch's own defaults are of two minds: convolutions and recurrent networks
with 10 bits of mantissa (TF32), matrices with all 23.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pipeline.spec import TrainingSpec


@contextlib.contextmanager
def tensor_cores(training: TrainingSpec, device: torch.device) -> Iterator[None]:
    """Let matrices, convolutions and recurrent networks on a GPU all use TF32, or none; other devices know none."""
    if device.type != "cuda":
        yield
        return
    matrices, networks = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if training.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = training.tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = networks
