"""Real processes on one store: two gates at once move the champion once; `kill -9` leaves the old or the new one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.release.champion import find_champion, find_version
from pipeline.release.conclusion import conclude
from pipeline.release.gate import Decision
from pipeline.release.releases import history, promote, settle
from pipeline.release.tracking import Tracking, connect, start_or_continue_run

pytestmark = pytest.mark.slow

ROUNDS = 10
KILLS = 25

GATE = """
import json, sys, time
from pathlib import Path
import torch
from pipeline.release.conclusion import conclude
from pipeline.release.gate import Evidence, decide
from pipeline.release.policy import policy_of
from pipeline.release.releases import settle
from pipeline.spec import load_spec
from measured_blocks import measured

uri, prefix, version, rounds, folder = sys.argv[1:]
policy = policy_of(load_spec("conf/image_vae.yaml", ["release.repeats=200"]))
champion, challenger = (Evidence(measured={"nll_nats": measured(torch.full((100,), n))}) for n in (5.0, 4.0))
settle(uri, f"{prefix}-0")
for number in range(int(rounds)):
    Path(folder, f"{number}-{version}").touch()
    while len(list(Path(folder).glob(f"{number}-*"))) < 2:
        time.sleep(0.001)
    concluded = conclude(uri, f"{prefix}-{number}", version, "1", decide(policy, challenger, champion))
    print(json.dumps(vars(concluded)), flush=True)
"""

FORKS = """
import os, sys
from pipeline.release.conclusion import conclude
from pipeline.release.gate import Decision
from pipeline.release.tracking import import_mlflow
import mlflow.tracking, mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store
uri, name = sys.argv[1:]
for line in sys.stdin:
    version, before = line.split()
    pid = os.fork()
    if pid == 0:
        conclude(uri, name, version, before, Decision("promote", "better", ()))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{Path.cwd()}:{Path('tests').absolute()}", "OMP_NUM_THREADS": "1"}


def make_versions(tracking: Tracking, name: str, count: int) -> None:
    client = connect(tracking.uri)
    client.create_registered_model(name)
    for number in range(count):
        run_id = start_or_continue_run(tracking, name, name, f"{name}-{number}")
        client.create_model_version(name, source=client.get_run(run_id).info.artifact_uri, run_id=run_id)
    promote(tracking.uri, name, "1", None)


def race(tracking: Tracking, folder: Path, versions: tuple[str, str]) -> tuple[list[list[dict[str, Any]]], str]:
    """What two processes told of each round, at which both gate their version against the champion at once."""
    prefix = f"race-{'-'.join(versions)}-{'server' if tracking.uri.startswith('http') else 'sqlite'}"
    for number in range(ROUNDS):
        make_versions(tracking, f"{prefix}-{number}", 3)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", GATE, tracking.uri, prefix, version, str(ROUNDS), str(folder)],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for version in versions
    ]  # fmt: skip
    told = []
    for process in processes:
        out, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        told.append([json.loads(line) for line in out.splitlines()])
    return told, prefix


def check_race(tracking: Tracking, folder: Path) -> None:
    told, prefix = race(tracking, folder, ("2", "3"))
    assert [len(each) for each in told] == [ROUNDS, ROUNDS]
    for number in range(ROUNDS):
        name = f"{prefix}-{number}"
        both = {"2": told[0][number], "3": told[1][number]}
        (winner,) = (version for version, each in both.items() if each["decision"] == "promoted")
        (loser,) = (version for version, each in both.items() if each["decision"] == "held")
        finished, begun = history(tracking.uri, name)
        assert begun is None
        assert [(each.before, each.version) for each in finished] == [(None, "1"), ("1", winner)], "one move"
        now = find_champion(tracking.uri, name)
        assert now is not None and now.version == winner
        assert f"the champion is version {winner} now and was version 1" in both[loser]["reason"]
        for version, decision in ((winner, "promoted"), (loser, "held")):
            known = find_version(tracking.uri, name, version)
            assert known.tags["atelier.decision"] == decision, "both are recorded"
            assert known.run_id and len(connect(tracking.uri).list_artifacts(known.run_id, "gate")) == 1


def test_of_two_gates_at_once_on_one_sqlite_file_one_moves_the_champion(tracking: Tracking, tmp_path: Path) -> None:
    check_race(tracking, tmp_path)


@pytest.fixture
def server(tracking: Tracking, tmp_path: Path) -> Iterator[Tracking]:
    """A real MLflow server on loopback with a store of its own, ended by its own process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = tmp_path / "server.db"
    source = Path(tracking.uri.removeprefix("sqlite:///"))
    store.write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    command += ["--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", str(tmp_path / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{uri}/health"):
                break
            time.sleep(0.2)
        experiment = connect(uri).create_experiment("of-the-server")
        yield Tracking(uri, experiment, connect(uri).get_experiment(experiment).artifact_location)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_of_two_gates_at_once_on_a_server_one_moves_the_champion(server: Tracking, tmp_path: Path) -> None:
    folder = tmp_path / "rounds"
    folder.mkdir()
    check_race(server, folder)


def test_two_gates_of_the_same_version_move_the_champion_once(tracking: Tracking, tmp_path: Path) -> None:
    """Both say that it was promoted, and it was, once."""
    name = "same-version"
    make_versions(tracking, name, 2)
    decision = Decision("promote", "better", ())
    first, second = (conclude(tracking.uri, name, "2", "1", decision) for _ in range(2))
    assert (first.decision, first.release, second.decision, second.release) == ("promoted", 2, "promoted", None)
    assert len(history(tracking.uri, name)[0]) == 2


def test_killed_at_random_moments_the_champion_is_the_old_or_the_new_one(tracking: Tracking) -> None:
    name = "killed-for-real"
    make_versions(tracking, name, KILLS + 4)
    forks = subprocess.Popen(
        [sys.executable, "-c", FORKS, tracking.uri, name],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    assert forks.stdin is not None and forks.stdout is not None
    delays, seen, before = random.Random(0), {"old": 0, "new": 0, "unfinished": 0}, "1"
    took = 0.0
    try:
        for number in range(2, KILLS + 5):
            version = str(number)
            forks.stdin.write(f"{version} {before}\n")
            pid, started = int(forks.stdout.readline()), time.monotonic()
            if number > 4:  # the first three run to their ends, to see how long that is
                time.sleep(delays.uniform(0, took))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            forks.stdout.readline()
            took = time.monotonic() - started if number <= 4 else took
            now = find_champion(tracking.uri, name)
            assert now is not None and now.version in (before, version)
            seen["new" if now.version == version else "old"] += 1
            seen["unfinished"] += history(tracking.uri, name)[1] is not None
            settle(tracking.uri, name)
            finished, begun = history(tracking.uri, name)
            now = find_champion(tracking.uri, name)
            assert begun is None and now is not None and finished[-1].version == now.version
            # The same call again ends as it would have.
            conclude(tracking.uri, name, version, before, Decision("promote", "better", ()))
            now = find_champion(tracking.uri, name)
            assert now is not None and now.version == version
            before = version
    finally:
        forks.stdin.close()
        forks.wait(30)
    finished, _ = history(tracking.uri, name)
    assert [each.version for each in finished] == [str(number) for number in range(1, KILLS + 5)]
    print(f"killed {KILLS} times: {seen}")
    assert seen["old"] > 0 and seen["new"] > 3
