"""A training through the command line that is killed again and again and called again until it ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.cases import arguments
from tests.chaos.kills import Kill
from tests.integration.ray_nodes import RayNodes

REPOSITORY = Path(__file__).parents[2]
LOOK_EVERY_SECONDS = 0.2
CPUS_A_NODE = 2
PATIENCE_SECONDS, PATIENCE_A_KILL = 600.0, 240.0
"""How long a run may take, and how much longer for each kill, before it counts as one that never ends."""
SAID_AT_MOST = 3000


class ChaosError(AssertionError):
    """A run that did not come through, with what its drivers said last."""


@dataclass
class Came:
    """How a run came through: what its last driver answered, the name of its folder, the kills that were done (and at
    which step the newest checkpoint stood), and seconds."""

    answer: dict[str, Any]
    key: str
    done: list[tuple[Kill, int]] = field(default_factory=list)
    missed: list[Kill] = field(default_factory=list)
    seconds: float = 0.0


class Ordeal:
    """One run of a case by drivers that join the cluster of `nodes`; with 0 workers they train in their own process."""

    def __init__(self, case: str, storage: Path, workers: int, nodes: RayNodes) -> None:
        self.case, self.storage, self.workers, self.nodes = case, storage, workers, nodes
        self.log = storage / f"{case}-{workers}-{time.time_ns()}.log"
        self.before = set(self._folders())
        self.last_kill = 0.0
        self.driver: subprocess.Popen[bytes] | None = None

    def go(self, kills: Sequence[Kill] = (), seed: int = 0, say: Callable[[str], None] = print) -> Came:
        """Run it through `kills`. Raises: ChaosError when a driver fails by itself or says nothing, the run never ends,
        or it went on with one that was there before."""
        chance, start = random.Random(seed), time.monotonic()
        came = Came({}, "")
        self.deadline = start + PATIENCE_SECONDS + PATIENCE_A_KILL * len(kills)
        self._start()
        try:
            for kill in kills:
                if not self._awaits(kill):
                    came.missed.append(kill)
                    continue
                step = self.step()
                say(f"{self.case}: {kill.in_words()}; the newest checkpoint is of step {step:,}")
                if self._do(kill, chance):
                    came.done.append((kill, step))
                else:
                    came.missed.append(kill)
            while self._running():
                time.sleep(LOOK_EVERY_SECONDS)
        finally:
            assert self.driver is not None
            self.driver.kill()
            self.driver.wait()
        came.answer, came.key = self._answer(), self.key()
        if not came.key:
            raise ChaosError(f"{self.case}: its drivers made no run of their own in {self.storage}: {self._said()}")
        came.seconds = time.monotonic() - start
        return came

    # --- the run as anybody sees it in its storage --------------------------------------------------------------

    def _folders(self) -> list[str]:
        return sorted(path.parent.name for path in self.storage.glob("runs/*/run.json"))

    def key(self) -> str:
        """The name of the run's folder, "" before there is one. Raises: ChaosError when drivers made more than one."""
        new = set(self._folders()) - self.before
        if len(new) > 1:
            raise ChaosError(f"{self.case}: its drivers made {len(new)} runs of one: {', '.join(sorted(new))}")
        return new.pop() if new else ""

    def _saved(self) -> list[Path]:
        key = self.key()
        return sorted(self.storage.glob(f"training/{key}/step-*/state.json")) if key else []

    def step(self) -> int:
        """The step of the newest checkpoint; 0 when there is none."""
        return max((int(path.parent.name.removeprefix("step-")) for path in self._saved()), default=0)

    def _saved_since_kill(self) -> int:
        """The step of the newest checkpoint that was written since the kill before; 0 when there is none."""
        found = 0
        for path in self._saved():
            try:
                if path.stat().st_mtime > self.last_kill:
                    found = max(found, int(path.parent.name.removeprefix("step-")))
            except FileNotFoundError:  # an old one was removed
                continue
        return found

    # --- its drivers --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        environment = self.nodes.environment(RAY_ADDRESS=self.nodes.gcs)
        command = [sys.executable, "-m", "jobs", "train", *arguments(self.case, self.storage, self.workers)]
        self.answers = self.log.with_suffix(".json")
        with self.log.open("ab") as errors, self.answers.open("wb") as answers:
            self.driver = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=answers, stderr=errors, start_new_session=True
            )

    def _running(self) -> bool:
        """Whether the driver is still at work. Raises: ChaosError when it failed, or took too long."""
        assert self.driver is not None
        code = self.driver.poll()
        if code not in (None, 0):
            raise ChaosError(f"{self.case}: a driver left with {code}: {self._said()}")
        if code is None and time.monotonic() > self.deadline:
            raise ChaosError(
                f"{self.case}: the run does not end; its newest checkpoint is of step {self.step()}: {self._said()}"
            )
        return code is None

    def _said(self) -> str:
        """The driver's answer and the end of its log, without the logs of dead nodes that Ray quotes in it."""
        lines = self.log.read_text(errors="replace").splitlines()
        own = "\n".join(line for line in lines if not line.startswith("    "))
        return f"{self.answers.read_text()} {own[-SAID_AT_MOST:]}"

    def _answer(self) -> dict[str, Any]:
        lines = self.answers.read_text().splitlines()
        if not lines:
            raise ChaosError(f"{self.case}: the last driver answered nothing: {self._said()}")
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer

    # --- kills --------------------------------------------------------------------------------------------------

    def _awaits(self, kill: Kill) -> bool:
        """Wait for the moment of a kill; False when the run ended before it."""
        while self._running():
            if kill.at_step is None:
                if kill.victim == "driver" or self._workers():
                    break
            elif self._saved_since_kill() >= kill.at_step:
                break
            time.sleep(LOOK_EVERY_SECONDS)
        until = time.monotonic() + kill.delay_seconds
        while self._running() and time.monotonic() < until:
            time.sleep(LOOK_EVERY_SECONDS)
        return self._running()

    def _workers(self) -> list[tuple[int, int]]:
        """Node and process id of each training worker."""
        found = self.nodes.workers_named("RayTrainWorker")
        return [(node, pid) for node, pids in sorted(found.items()) for pid in sorted(pids)]

    def _do(self, kill: Kill, chance: random.Random) -> bool:
        """Kill; False when there was nobody any more."""
        self.last_kill = time.time()
        if kill.victim == "driver":
            assert self.driver is not None
            self.driver.kill()
            self.driver.wait()
            time.sleep(chance.uniform(0, 2))
            self._start()
            return True
        workers = self._workers()
        if not workers:
            return False
        node, pid = chance.choice(workers)
        if kill.victim == "worker":
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
            return True
        raylet = self.nodes.raylets()[node]
        if raylet is None:
            return False
        raylet.kill()
        self.nodes.lose(node)  # what is left of it: a machine takes everything with it
        self.nodes.add(CPUS_A_NODE)
        return True
