"""Training needs no Ray and no MLflow: where these cannot be imported, the loop runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
for name in ("ray", "mlflow", "pandas"):
    sys.modules[name] = None  # importing it raises
import torch
torch.set_num_threads(1)
from tests.benchmarks.gpu import Machine, Training, spec_of
machine = Machine("cpu", 0.01, smoke=True)
for family in ("vae", "gan", "rnn"):
    training = Training(spec_of(family, 8, smoke=True), machine)
    for _ in range(3):
        training.step()

    norms = training.session.stepper.weight_norms()
    assert all(bool(norm.isfinite()) for norm in norms.values())
print("trained")
"""


def test_the_three_families_train_without_ray_and_mlflow() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained\n"


@pytest.mark.slow
def test_the_benchmark_for_gpus_runs_to_its_end_on_a_cpu() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--device", "cpu", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + 3 * 3
