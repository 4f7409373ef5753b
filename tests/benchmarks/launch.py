"""Seconds from `fit()` to a training's first step, against those of a TorchTrainer that does nothing to its first line.

    python -m tests.benchmarks.launch [--rounds 5] [CONF]

Both are launched in turn on one Ray, as `atelier train` starts it; the first launch of each, for which Ray may have a
process waiting, is not counted. One JSON line is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared
from pipeline.progress import silent
from pipeline.ray_session import end_data_actors, ray_session
from pipeline.release.tracking import Tracking, open_tracking, start_or_continue_run
from pipeline.spec import RunSpec, load_spec
from pipeline.storage import Store, open_store
from pipeline.training.launch import train_with_ray


def empty_launch(folder: Path, number: int) -> float:
    """Until the first line of a function that returns at once."""
    path = folder / f"first-line-{number}"

    def first_line() -> None:
        path.write_text(str(time.time()))

    trainer = TorchTrainer(
        first_line,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name=f"empty-{number}", storage_path=str(folder / "empty")),
    )
    start = time.time()
    trainer.fit()
    return float(path.read_text()) - start


def launch(spec: RunSpec, prepared: Prepared, store: Store, tracking: Tracking, number: int) -> float:
    """Until the first step of a training of a few steps."""
    key = f"{spec.name}-{number}"
    run_id = start_or_continue_run(tracking, spec.name, key, key)
    start = time.time()
    trained = train_with_ray(spec, prepared, store, key, tracking.uri, run_id, silent)
    assert trained.first_step_at is not None, "it was over before it was looked at"
    return trained.first_step_at - start


def compare(conf: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Medians of both, and what lies between them."""
    spec = load_spec(f"conf/{conf}.yaml", [f"storage={folder / 'storage'}", "training.steps=20", "data.limit=1000"])
    store = open_store(spec.storage)
    ours: list[float] = []
    empty: list[float] = []
    with ray_session():
        tracking = open_tracking(spec, store)
        prepared = prepare(spec, store, silent)
        end_data_actors()
        for number in range(rounds + 1):
            empty.append(empty_launch(folder, number))
            ours.append(launch(spec, prepared, store, tracking, number))
    return {
        "conf": conf,
        "to_first_step_seconds": round(statistics.median(ours[1:]), 2),
        "empty_to_first_line_seconds": round(statistics.median(empty[1:]), 2),
        "more_seconds": round(statistics.median(o - e for o, e in zip(ours[1:], empty[1:], strict=True)), 2),
        "each": [[round(o, 2), round(e, 2)] for o, e in zip(ours, empty, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("conf", nargs="?", default="image_vae")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(options.conf, options.rounds, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
