"""Trainings that take turns on one machine: while one runs, every process of the others is stopped.

So all see the same machine, within seconds, whatever else it does; that is all that makes figures of a shared machine
worth comparing. Of Ray it knows the command line that starts it and, to pin them, the title of its training workers;
data that plain loops read is prepared on a Ray that has ended before any of them begins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.benchmarks.plain_loops import PLAINER, Counter

FIRST_STEP_SECONDS = 180.0
SETTLED_SECONDS = 8.0
"""After its first steps a training still imports what records them."""

Window = tuple[float, float]
"""When it was somebody's turn, in seconds of the epoch."""


class Contestant(ABC):
    """A training (or several that are to run beside each other), in trees of processes of its own."""

    def __init__(self, name: str, commands: Sequence[Sequence[str]], output: Path, **environment: str) -> None:
        self.name, self.output = name, output
        with output.open("wb") as log:
            self.processes = [
                subprocess.Popen(
                    list(command), stdout=log, stderr=log, env={**os.environ, **environment}, start_new_session=True
                )
                for command in commands
            ]
        self.windows: list[Window] = []

    @abstractmethod
    def begun(self) -> bool:
        """Whether it has taken its first steps."""

    @abstractmethod
    def rate(self) -> float:
        """Steps a second of its own turns."""

    def tree(self) -> list[psutil.Process]:
        roots = [psutil.Process(process.pid) for process in self.processes if process.poll() is None]
        return [process for root in roots for process in (root, *root.children(recursive=True))]

    def send(self, what: signal.Signals) -> None:
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(what)

    def wait_for_steps(self) -> None:
        deadline = time.monotonic() + FIRST_STEP_SECONDS
        while not self.begun():
            ended = any(process.poll() is not None for process in self.processes)
            assert not ended, f"{self.name} ended: {self.output.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{self.name} takes no step: {self.output.read_text()[-2000:]}"
            time.sleep(0.2)  # its steps are read from files, and nobody tells that one has changed

    def turn(self, seconds: float) -> None:
        self.send(signal.SIGCONT)
        start = time.time()
        time.sleep(seconds)  # the turn itself
        self.windows.append((start, time.time()))
        self.send(signal.SIGSTOP)

    def end(self) -> None:
        tree = self.tree()
        self.send(signal.SIGKILL)
        psutil.wait_procs(tree, timeout=10)


class Plain(Contestant):
    """A loop of `plain_loops` with `threads`: one process; `ranks` of torchrun's; or, pinned to `cores`, a copy on each
    that knows nothing of the others. With `weak`, ranks take a whole batch each."""

    def __init__(
        self,
        name: str,
        conf: str,
        data: Path,
        folder: Path,
        threads: int = 1,
        ranks: int = 1,
        weak: bool = False,
        cores: Sequence[int] = (),
    ) -> None:
        launcher = [sys.executable, "-m"]
        if ranks > 1:
            launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        self.counters, commands = [], []
        for core in cores or (None,):
            path = folder / f"{name}-{core}.steps"
            self.counters.append(Counter(path))
            pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
            arguments = ["tests.benchmarks.plain_loops", conf, str(data), str(path), f"--threads={threads}"]
            commands.append([*pinned, *launcher, *arguments, *(["--weak"] if weak else [])])
        super().__init__(name, commands, folder / f"{name}.log", OMP_NUM_THREADS=str(threads))
        self.steps, self.seconds = 0, 0.0

    def begun(self) -> bool:
        return all(counter.value >= 3 for counter in self.counters)

    def _counted(self) -> int:
        return sum(counter.value for counter in self.counters)

    def turn(self, seconds: float) -> None:
        before = self._counted()
        super().turn(seconds)
        start, end = self.windows[-1]
        self.steps += self._counted() - before
        self.seconds += end - start

    def rate(self) -> float:
        """Of all copies together."""
        return self.steps / self.seconds


class Atelier(Contestant):
    """`atelier train CONF` on a Ray of its own, whole: recording, its report of progress, Ray's own processes."""

    def __init__(self, name: str, conf: str, folder: Path, overrides: Sequence[str]) -> None:
        self.storage = folder / f"{name}-storage"
        settings = [
            f"storage={self.storage}",
            *PLAINER.get(conf, []),
            "training.steps=10000000",
            "training.max_seconds=null",
            "training.schedule=constant",
            "training.ema_decay=0",
            "training.precision=float32",
            "training.validate_every=10000000",
            "training.checkpoint_every=10000000",
            *overrides,
        ]
        sets = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "jobs", "train", f"conf/{conf}.yaml", *sets]
        super().__init__(name, [command], folder / f"{name}.log")

    def pin(self, cores: set[int]) -> None:
        """Let its training workers run on these cores alone; Ray's own processes go where they like."""
        for process in self.tree():
            if "RayTrainWorker" in "".join(process.cmdline()[:1]):
                for thread in process.threads():
                    os.sched_setaffinity(thread.id, cores)

    def reports(self) -> list[tuple[float, int]]:
        """When each report came, in seconds of the epoch, and of which step it was; those that MLflow has by now."""
        path = self.storage / "mlflow.db"
        if not path.exists():
            return []
        # Not by MLflow, which would make its tables in a file that the driver has only begun to make them in.
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            try:
                rows = database.execute("SELECT timestamp, step FROM metrics WHERE key = 'train/seconds' ORDER BY step")
                return [(timestamp / 1000, step) for timestamp, step in rows]
            except sqlite3.OperationalError:  # no such table yet
                return []

    def begun(self) -> bool:
        return len(self.reports()) > 0

    def rate(self) -> float:
        """Between its first and its last report within its turns."""
        rows = [row for row in self.reports() if any(start <= row[0] <= end for start, end in self.windows)]
        (first, before), (last, after) = rows[0], rows[-1]
        ran = sum(max(0.0, min(last, end) - max(first, start)) for start, end in self.windows)
        return (after - before) / ran


def take_turns(contestants: Sequence[Contestant], rounds: int, seconds: float) -> dict[str, float]:
    """Let each run `rounds` times `seconds`, all the others being stopped; steps a second of each, by name.

    `bring_to_start` has stopped each of them after its first steps.
    """
    for _ in range(rounds):
        for contestant in contestants:
            contestant.turn(seconds)
    for contestant in contestants:
        if isinstance(contestant, Atelier):
            contestant.turn(6.0)  # what it has to record goes out every five seconds
            contestant.windows.pop()
    return {contestant.name: contestant.rate() for contestant in contestants}


def bring_to_start(contestant: Contestant) -> Contestant:
    """Wait until it has settled, and stop it; ended when the benchmark is itself ended while it waits."""
    try:
        contestant.wait_for_steps()
        time.sleep(SETTLED_SECONDS)
        contestant.send(signal.SIGSTOP)
    except BaseException:
        contestant.end()
        raise
    return contestant


def save_data(conf: str, folder: Path) -> Path:
    """The training split of a conf, as the plain loops read it: tensor and vocabulary."""
    from pipeline.data.prepare import prepare
    from pipeline.progress import silent
    from pipeline.ray_session import ray_session
    from pipeline.spec import load_spec
    from pipeline.storage import open_store

    spec = load_spec(f"conf/{conf}.yaml", [f"storage={folder / 'data'}", *PLAINER.get(conf, [])])
    with ray_session():
        prepared = prepare(spec, open_store(spec.storage), silent)
    path = folder / f"{conf}.data"
    content: tuple[Any, int] = (prepared.load_split("train").x, prepared.layout.vocabulary)
    torch.save(content, path)
    return path


def turns_parser(description: str | None, confs: Sequence[str], slices: int) -> argparse.ArgumentParser:
    """What benchmarks by turns are told: which confs, how many turns each contestant has, how long."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("conf", nargs="*", default=list(confs))
    parser.add_argument("--slices", type=int, default=slices)
    parser.add_argument("--slice-seconds", type=float, default=3.0)
    return parser


def print_comparisons(confs: Sequence[str], compare: Callable[[str, Path], dict[str, Any]]) -> None:
    """A line of JSON for each conf, compared in a folder of its own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `finally`: all that was started is ended
    for conf in confs:
        with tempfile.TemporaryDirectory() as folder:
            found = compare(conf, Path(folder))
        print(json.dumps(found), flush=True)
