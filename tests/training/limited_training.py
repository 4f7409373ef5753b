"""A training under a limit of memory, as a program whose last line is JSON.

`python -m tests.training.limited_training MICRO_BATCH MEGABYTES`: an autoencoder of 4,096 pictures a step, for two
steps, in a process that may take so many megabytes beyond what it has when the training begins.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import torch
import typer
import yaml

from jobs.terminal import run_job
from pipeline.spec import make_spec
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from tests.conftest import cell_spec, prepared_in_memory


def main(micro_batch: str, megabytes: int) -> None:
    def train(_: Any) -> str:
        settings = {"steps": 2, "batch_size": 4096, "report_every": 1, "micro_batch": yaml.safe_load(micro_batch)}
        tree = cell_spec("vae", "image", **settings).as_dict()
        tree["model"]["backbone"]["channels"] = [32, 32]
        spec = make_spec(tree)
        session, hooks = Session(spec, prepared_in_memory(spec)), LocalHooks(spec)
        addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (addresses + megabytes * 2**20, resource.RLIM_INFINITY))
        end = session.run(hooks)
        metrics = hooks.metrics
        return json.dumps(
            {"steps": end.step, "loss": metrics["train/loss"], "micro_batch": metrics.get("train/micro_batch")}
        )

    torch.set_num_threads(1)
    run_job(train)


if __name__ == "__main__":
    typer.run(main)
