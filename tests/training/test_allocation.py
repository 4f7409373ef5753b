"""What a training worker frees it keeps for the next step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.training.allocation import KEEP_FREED_MEMORY

PAGE_FAULTS = """
import resource, threading
import torch

def steps():
    torch.set_num_threads(1)
    for number in range(20):
        if number == 5:
            counted.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        parts = [torch.ones(4 * 2**20 // 4) for _ in range(4)]  # four pieces of 4 MiB
        while parts:
            parts.pop()
    counted.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

counted = []
thread = threading.Thread(target=steps)  # workers train in a thread of their own
thread.start()
thread.join()
print((counted[1] - counted[0]) / 15)
"""


def _faults_a_step(**environment: str) -> float:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    result = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, env={**bare, **environment}, check=True
    )
    return float(result.stdout)


@pytest.mark.skipif(os.confstr("CS_GNU_LIBC_VERSION") is None, reason="the settings are glibc's")
def test_memory_that_a_step_frees_is_not_given_back_and_cleared_anew() -> None:
    assert _faults_a_step() > 1000
    assert _faults_a_step(**KEEP_FREED_MEMORY) < 50
