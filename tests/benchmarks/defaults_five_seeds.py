"""Whether a cell's defaults can give a loss that is not finite: short trainings of each conf from five seeds.

    python -m tests.benchmarks.defaults_five_seeds [CONF ...] [--seeds 5] [--steps 100] [--storage storage]

Prints one line of JSON a conf: of how many seeds all was finite, the losses at the end, and the warnings of health.
Trains in this process on a built-in corpus, prepared first, on a local Ray that has ended when training begins.
Without CONF these are `conf/{text,image,audio}_{rnn,vae,gan}.yaml`, as many as there are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch

from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared
from pipeline.errors import NonFiniteLossError
from pipeline.progress import silent
from pipeline.ray_session import ray_session
from pipeline.spec import load_spec
from pipeline.storage import open_store
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session

CELLS = [f"{modality}_{family}" for modality in ("text", "image", "audio") for family in ("rnn", "vae", "gan")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("confs", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--storage", default="storage")
    options = parser.parse_args()
    confs = options.confs or [path for cell in CELLS if (path := Path("conf", f"{cell}.yaml")).exists()]
    prepared: dict[Path, Prepared] = {}
    with ray_session():
        for conf in confs:
            spec = load_spec(conf, [f"storage={options.storage}"])
            prepared[conf] = prepare(spec, open_store(spec.storage), silent)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for conf in confs:
        print(json.dumps(line_of(conf, prepared[conf], options.seeds, options.steps, options.storage)), flush=True)


def line_of(conf: Path, prepared: Prepared, seeds: int, steps: int, storage: str) -> dict[str, object]:
    """What became of trainings of `conf` from `seeds` seeds, each of `steps` steps at the full learning rate (after the
    conf's warm-up) and with four validations."""
    every = [f"training.{key}_every={max(1, steps // 4)}" for key in ("validate", "checkpoint")]
    finite, losses, warned, errors = 0, [], [], []
    start = time.time()
    for seed in range(seeds):
        limits = [f"seed={seed}", f"training.steps={steps}", "training.max_seconds=null", "training.schedule=constant"]
        spec = load_spec(conf, [f"storage={storage}", *limits, *every, "training.report_every=10"])
        hooks = LocalHooks(spec)
        try:
            Session(spec, prepared).run(hooks)
        except NonFiniteLossError as error:
            errors.append(str(error))
            continue
        finite += all(math.isfinite(value) for value in hooks.metrics.values())
        losses.append({name: round(value, 4) for name, value in sorted(hooks.metrics.items()) if "loss" in name})
        warned.append([warning.kind for warning in hooks.warnings])
    told: dict[str, object] = {"conf": conf.stem, "finite": finite, "of": seeds, "steps": steps, "losses": losses}
    return told | {"warnings": warned, "errors": errors, "seconds": round(time.time() - start)}


if __name__ == "__main__":
    main()
