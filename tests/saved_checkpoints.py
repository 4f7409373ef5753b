"""Where tests and benchmarks find the checkpoints that a training in their own process saved."""

from __future__ import annotations

from pathlib import Path


def local_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that `LocalHooks` wrote into `folder`, oldest first."""
    return sorted(folder.glob("step-*"))
