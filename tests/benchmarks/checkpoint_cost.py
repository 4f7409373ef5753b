"""What checkpoints by the clock cost: steps a second with one every half minute against none, in one run.

    python -m tests.benchmarks.checkpoint_cost [--minutes 0.5] [--pairs 4] [--threads 2] [CONF …]

Two trainings of the same conf in this process, as `num_workers: 0` trains, take turns of equally many steps, which last
two checkpoints' time; who goes first changes from pair to pair. A turn counts until its last checkpoint is in the
storage. A line a family is printed: the median of the pairs' ratios, the seconds that a checkpoint stopped the
training, and those that its writing took beside it. With `--minutes 0.05` the cost is ten times as large and easier to
tell from noise; `cost_at_half_a_minute` is divided accordingly.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared
from pipeline.progress import silent
from pipeline.ray_session import ray_session
from pipeline.spec import RunSpec, load_spec
from pipeline.storage import open_store
from pipeline.training.checkpoint import Position, State
from pipeline.training.in_process import LocalHooks
from pipeline.training.loop import run_loop
from pipeline.training.saving import Saver
from pipeline.training.session import Session
from pipeline.training.shelf import Shelf
from pipeline.training.steps import Stepper
from tests.saved_checkpoints import local_checkpoints

WARM_UP_STEPS, TURN_OF_INTERVALS, HALF_A_MINUTE = 30, 2.05, 0.5


class TimedSaver(Saver):
    """Keeps how long each checkpoint was written."""

    def __init__(self, folder: Path, spec: RunSpec) -> None:
        super().__init__(Shelf(open_store(str(folder)), spec.training.keep_checkpoints), spec)
        self.written: list[float] = []

    def _put(self, state: State, at: Position) -> None:
        start = time.monotonic()
        super()._put(state, at)
        self.written.append(time.monotonic() - start)


class Timed(LocalHooks):
    """Hooks that keep how long each checkpoint stopped the training, and leave out the last of a turn, which only its
    end brings."""

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        super().__init__(spec)
        self.saver: TimedSaver = TimedSaver(folder, spec)
        self.last_of_turn = 0
        self.stopped: list[float] = []

    def checkpoint(self, at: Position, stepper: Stepper) -> None:
        if at.step < self.last_of_turn:
            start = time.monotonic()
            super().checkpoint(at, stepper)
            self.stopped.append(time.monotonic() - start)


class Training:
    """One of the two, with checkpoints every `minutes` or with none."""

    def __init__(self, spec: RunSpec, prepared: Prepared, folder: Path, minutes: float | None) -> None:
        changed = spec.as_dict()
        changed["training"] |= {"checkpoint_minutes": minutes, "checkpoint_every": 10**9, "validate_every": 10**9}
        changed["training"] |= {"max_seconds": None, "schedule": "constant", "num_workers": 0}
        self.spec = RunSpec.model_validate(changed)
        self.session, self.hooks, self.step = Session(self.spec, prepared), Timed(self.spec, folder), 0

    def turn(self, steps: int) -> float:
        """Steps a second over the next `steps`."""
        self.hooks.last_of_turn = end = self.step + steps
        training = self.spec.training.model_copy(update={"steps": end})
        start = time.monotonic()
        run_loop(self.session.stepper, self.session.batches, training, self.hooks, Position(self.step))
        self.hooks.close()
        self.step = end
        return steps / (time.monotonic() - start)


def measure(conf: str, spec: RunSpec, prepared: Prepared, folder: Path, minutes: float, pairs: int) -> dict[str, Any]:
    without, saving = (Training(spec, prepared, folder / name, m) for name, m in (("none", None), ("saving", minutes)))
    for training in (without, saving):
        training.turn(WARM_UP_STEPS)
    steps = int(without.turn(WARM_UP_STEPS) * TURN_OF_INTERVALS * 60 * minutes)
    ratios = []
    for pair in range(pairs):
        order = (without, saving) if pair % 2 == 0 else (saving, without)
        rates = {training is saving: training.turn(steps) for training in order}
        ratios.append(rates[True] / rates[False])
    ratio = statistics.median(ratios)
    newest = local_checkpoints(folder / "saving")[-1]
    return {
        "conf": conf,
        "minutes": minutes,
        "checkpoints": len(saving.hooks.stopped),
        "checkpoint_mib": round(sum(path.stat().st_size for path in newest.iterdir()) / 2**20, 1),
        "ratio": round(ratio, 4),
        "ratios": [round(one, 3) for one in ratios],
        "cost_at_half_a_minute": round((1 - ratio) * minutes / HALF_A_MINUTE, 4),
        "seconds_stopped": round(statistics.median(saving.hooks.stopped), 4),
        "seconds_written_beside": round(statistics.median(saving.hooks.saver.written), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("conf", nargs="*", default=["image_vae", "text_rnn", "audio_gan"])
    parser.add_argument("--minutes", type=float, default=HALF_A_MINUTE)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = open_store(temporary)
        specs = {conf: load_spec(f"conf/{conf}.yaml", [f"storage={store.uri}"]) for conf in options.conf}
        with ray_session():
            sets = {conf: prepare(spec, store, silent) for conf, spec in specs.items()}
        torch.set_num_threads(options.threads)
        torch.set_flush_denormal(True)  # as in a training
        for conf, spec in specs.items():
            folder = Path(temporary, "training", conf)
            print(json.dumps(measure(conf, spec, sets[conf], folder, options.minutes, options.pairs)), flush=True)


if __name__ == "__main__":
    main()
