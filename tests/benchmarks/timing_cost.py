"""What it costs to measure where a step's time goes: the same training with the timer and with none, by turns.

    python -m tests.benchmarks.timing_cost [--rounds 40] [--steps 25]

A character model whose steps are as small as text gets, so that what is added to each shows most; in this process,
one thread, by its own processor time, which a busy machine disturbs least. One line of JSON: the median over rounds of
a step with the timer against one without, what the five parts of a step take when nothing is in them, and what the step
in which operations are counted takes more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from typing import Any

import torch

from pipeline.spec import make_spec
from pipeline.training.flops import FlopCount
from pipeline.training.session import Session
from pipeline.training.timing import StepTimer
from tests.conftest import lane_spec, prepared_in_memory


class NoTimer(StepTimer):
    """Measures nothing."""

    def part(self, name: str, phase: str = "") -> Any:
        return contextlib.nullcontext()


def small_session() -> Session:
    """An LSTM of 64 units on 16 lanes of 32 characters: steps of a few milliseconds."""
    tree = lane_spec(steps=10**9, batch_size=16, clip_norm=1.0).as_dict()
    tree["data"]["codec"] |= {"length": 32}
    tree["model"]["backbone"] |= {"cell": "lstm", "hidden_size": 64, "embedding_size": 32}
    spec = make_spec(tree)
    return Session(spec, prepared_in_memory(spec, train=400))


def measure(rounds: int, steps: int) -> dict[str, Any]:
    session = small_session()
    stepper, timers = session.stepper, (NoTimer(), StepTimer())
    number, ratios, seconds = 0, [], []

    def turn(timer: StepTimer) -> float:
        nonlocal number
        stepper.timer = timer
        start = time.thread_time()
        for _ in range(steps):
            with timer.part("data"):
                stepper.step(number, session.batches, 0.0)
            number += 1
        timer.take()
        return (time.thread_time() - start) / steps

    turn(timers[0])
    for round_number in range(rounds):
        # Whoever comes second finds the caches as the first left them: each is first as often.
        order = (0, 1) if round_number % 2 else (1, 0)
        took = {which: turn(timers[which]) for which in order}
        ratios.append(took[1] / took[0])
        seconds.append(took[0])
    plain = statistics.median(seconds)
    counted = []
    for _ in range(10):
        start = time.thread_time()
        with FlopCount():
            stepper.step(number, session.batches, 0.0)
        counted.append(time.thread_time() - start)
        number += 1
    quarters = statistics.quantiles(ratios, n=4)
    timer = StepTimer()
    start = time.thread_time()
    for _ in range(10_000):
        for part in ("data", "forward", "backward", "optimiser", "optimiser"):
            with timer.part(part, "model"):
                pass
    parts_us = 100 * (time.thread_time() - start)
    return {
        "step_ms": round(1000 * plain, 3),
        "timed_to_plain": round(statistics.median(ratios), 4),
        "quartiles": [round(quarters[0], 4), round(quarters[2], 4)],
        "parts_alone_us": round(parts_us, 2),
        "counted_step_adds_ms": round(1000 * (statistics.median(counted) - plain), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(arguments.rounds, arguments.steps)))


if __name__ == "__main__":
    main()
