"""Weak scaling: two workers on two cores against one worker on one core, in examples a second.

    python -m tests.benchmarks.scaling [--slices 8] [--slice-seconds 3] [CONF …]

Every worker has one thread and the conf's batch; with two workers the global batch is twice that. Beside it stands
what the machine gives a program by hand: two processes of torchrun under DistributedDataParallel against one on one
core, and two copies that know nothing of each other, which is its ceiling where two cores are threads of one. All
take turns in one run. A line a conf is printed; each figure is examples a second on two cores over those on one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.benchmarks.plain_loops import BATCHES
from tests.benchmarks.turns import (
    Atelier,
    Contestant,
    Plain,
    bring_to_start,
    print_comparisons,
    save_data,
    take_turns,
    turns_parser,
)


def compare(conf: str, slices: int, slice_seconds: float, folder: Path) -> dict[str, Any]:
    """The three ratios, and examples a second of all five."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    assert len(cores) == 2, "weak scaling needs two cores"
    batch = BATCHES[conf]
    data = save_data(conf, folder)
    common = ["training.threads_per_worker=1"]
    contestants: list[Contestant] = []

    def join(contestant: Contestant) -> None:
        contestants.append(contestant)
        bring_to_start(contestant)

    try:
        join(Plain("plain", conf, data, folder, cores=cores[:1]))
        join(Plain("copies", conf, data, folder, cores=cores))
        join(Plain("torchrun", conf, data, folder, ranks=2, weak=True))
        one = Atelier("one", conf, folder, [*common, "training.num_workers=1"])
        join(one)
        one.pin(set(cores[:1]))
        join(Atelier("two", conf, folder, [*common, "training.num_workers=2", f"training.batch_size={2 * batch}"]))
        rates = take_turns(contestants, slices, slice_seconds)
    finally:
        for contestant in contestants:
            contestant.end()
    # A step of two workers is of twice the examples; copies are counted together.
    examples = {name: rate * batch * (2 if name in ("torchrun", "two") else 1) for name, rate in rates.items()}
    return {
        "conf": conf,
        "atelier": round(examples["two"] / examples["one"], 3),
        "torchrun": round(examples["torchrun"] / examples["plain"], 3),
        "copies": round(examples["copies"] / examples["plain"], 3),
        "examples_per_second": {name: round(value, 1) for name, value in examples.items()},
    }


def main() -> None:
    options = turns_parser(__doc__, list(BATCHES), slices=8).parse_args()
    print_comparisons(options.conf, lambda conf, folder: compare(conf, options.slices, options.slice_seconds, folder))


if __name__ == "__main__":
    main()
