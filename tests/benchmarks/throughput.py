"""Steps a second of `atelier train` against hand-written plain PyTorch loops of the same models, in one run.

    python -m tests.benchmarks.throughput [--workers 1] [--slices 12] [--slice-seconds 3] [CONF …]

One worker with a thread for each core is compared with a plain loop with as many threads; two workers with a thread
each with two processes of torchrun under DistributedDataParallel. Both trainings are running at once and take turns:
while one runs, every process of the other (workers, Ray's own processes and the driver) is stopped. A line a conf is
printed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.benchmarks.plain_loops import LOOPS
from tests.benchmarks.turns import (
    Atelier,
    Plain,
    bring_to_start,
    print_comparisons,
    save_data,
    take_turns,
    turns_parser,
)


def compare(conf: str, workers: int, slices: int, slice_seconds: float, folder: Path) -> dict[str, Any]:
    """Steps a second of both, and their ratio."""
    threads = len(os.sched_getaffinity(0)) if workers == 1 else 1
    data = save_data(conf, folder)
    overrides = [f"training.num_workers={workers}", f"training.threads_per_worker={threads}"]
    contestants = []
    try:
        contestants.append(bring_to_start(Plain("plain", conf, data, folder, threads, workers)))
        contestants.append(bring_to_start(Atelier("atelier", conf, folder, overrides)))
        rates = take_turns(contestants, slices, slice_seconds)
    finally:
        for contestant in contestants:
            contestant.end()
    return {
        "conf": conf,
        "workers": workers,
        "threads_each": threads,
        "atelier_steps_per_second": round(rates["atelier"], 2),
        "plain_steps_per_second": round(rates["plain"], 2),
        "ratio": round(rates["atelier"] / rates["plain"], 3),
        "seconds_of_each": slices * slice_seconds,
    }


def main() -> None:
    parser = turns_parser(__doc__, list(LOOPS), slices=12)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    print_comparisons(
        options.conf,
        lambda conf, folder: compare(conf, options.workers, options.slices, options.slice_seconds, folder),
    )


if __name__ == "__main__":
    main()
