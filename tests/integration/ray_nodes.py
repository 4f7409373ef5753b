"""Ray nodes as processes of this machine, each at an address of its own, with token authentication on.

Only what was started here is ended, by its process id: `ray stop` would end every Ray of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from tests.one_card import as_machine

TOKEN = "atelier-test-token-0123456789abcdef"
START_SECONDS = 120


class RayNodes:
    """A head without processors and some workers, until `close`. With GPUs each worker has the machine's first one."""

    def __init__(self, workers: int = 2, cpus_each: int = 2, gpus_each: int = 0) -> None:
        self.gpus_each = gpus_each
        self.folder = Path(tempfile.mkdtemp(prefix="at", dir="/tmp"))  # short: the names of sockets are limited
        self.processes: list[psutil.Process] = []
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.gcs_port, self.dashboard_port = _free_port(), _free_port()
        # Not 127.0.0.1, which Ray takes for the machine's outer address.
        self.address = f"http://127.0.0.2:{self.dashboard_port}"
        try:
            head = ["--head", f"--port={self.gcs_port}", "--dashboard-host=127.0.0.2"]
            self._start(0, 0, [*head, f"--dashboard-port={self.dashboard_port}"])
            for _ in range(workers):
                self.add(cpus_each)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def gcs(self) -> str:
        """The address at which a driver joins."""
        return f"127.0.0.2:{self.gcs_port}"

    def add(self, cpus: int) -> int:
        """Start another worker node; its number."""
        self._start(cpus, self.gpus_each, [f"--address=127.0.0.2:{self.gcs_port}"])
        return len(self.nodes) - 1

    def lose(self, number: int) -> None:
        """End a node as a machine ends that loses its power."""
        for process in _tree(self.nodes[number].pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def announce_loss(self, number: int, seconds: int) -> None:
        """Tell Ray that the node will be taken away, as a cloud tells of a spot machine."""
        command = [str(Path(sys.executable).parent / "ray"), "drain-node", f"--address=127.0.0.2:{self.gcs_port}"]
        command += [f"--node-id={self.alive()[_address(number)]}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message=spot", f"--deadline-remaining-seconds={seconds}"]
        subprocess.run(command, env=self.environment(), check=True, capture_output=True)

    def environment(self, **more: str) -> dict[str, str]:
        """What a node, or a submitter, sees: nothing of the developer's own variables but where the sources are."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "USER", "PYTHONPATH") if name in os.environ}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            **more,
        }

    def _start(self, cpus: int, gpus: int, arguments: list[str]) -> None:
        """Start a node and wait for it: nodes of one machine that start together wait for each other."""
        number = len(self.nodes)
        first_port = 20000 + 400 * number + os.getpid() % 50 * 200
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--block",
            "--disable-usage-stats",
            f"--node-ip-address={_address(number)}",
            f"--num-cpus={cpus}",
            f"--num-gpus={gpus}",
            # A folder of its own, as on a machine of its own: a node that unpacks a job's package deletes it first,
            # and a driver in the same folder would find its sources gone.
            f"--temp-dir={self.folder / str(number)}",
            "--object-store-memory=150000000",
            f"--min-worker-port={first_port}",
            f"--max-worker-port={first_port + 180}",
            f"--dashboard-agent-listen-port={_free_port()}",
            f"--metrics-export-port={_free_port()}",
            *arguments,
        ]
        quick = {
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            # At 15, Ray's own, workers wait on a busy machine for everything else that it does.
            "RAY_worker_niceness": "0",
        }
        with (self.folder / f"{number}.out").open("wb") as output:
            node = subprocess.Popen(
                command,
                env=self.environment(**quick, **(as_machine(number) if gpus else {})),
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.nodes.append(node)
        deadline = time.monotonic() + START_SECONDS
        while _address(number) not in self.alive():
            assert time.monotonic() < deadline and node.poll() is None, self._said()
            time.sleep(0.2)

    def alive(self) -> dict[str, str]:
        """The ids of the nodes that Ray counts as alive, by address; none where the dashboard does not answer."""
        try:
            nodes = json.loads(self.get("/nodes?view=summary"))["data"]["summary"]
        except (OSError, urllib.error.URLError):
            return {}
        raylets = [node["raylet"] for node in nodes]
        return {one["nodeManagerAddress"]: one["nodeId"] for one in raylets if one.get("state") == "ALIVE"}

    def get(self, path: str) -> str:
        """What the dashboard answers."""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def _said(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.out")))

    def raylets(self) -> list[psutil.Process | None]:
        """The raylet of each node; None where there is none (any more)."""
        return [_child(node.pid, "raylet") for node in self.nodes]

    def workers_named(self, word: str) -> dict[int, list[int]]:
        """Ids of Ray's worker processes with `word` in their title, by the number of their node (0 is the head)."""
        found: dict[int, list[int]] = {}
        for number, raylet in enumerate(self.raylets()):
            for child in _children(raylet):
                if any(word in part for part in _command(child)[:1]):
                    found.setdefault(number, []).append(child.pid)
        return found

    def commands_with(self, word: str) -> list[str]:
        """The command lines, with `word` in them, of all processes of all nodes."""
        lines = [" ".join(_command(child)) for node in self.nodes for child in _tree(node.pid)]
        return [line for line in lines if word in line]

    def drivers(self, verb: str) -> list[psutil.Process]:
        """The processes of submitted jobs, on the head, that run `python -m jobs VERB`."""
        module = ["-m", "jobs", verb]
        return [child for child in _tree(self.nodes[0].pid) if _command(child)[1:4] == module]

    def logs(self) -> Path:
        """The folder with all that the nodes keep on disk: logs, packages, sockets."""
        return self.folder

    def close(self) -> None:
        """End every process of every node, by its id."""
        for node in self.nodes:
            self.processes += _tree(node.pid)
        for node in self.nodes:
            node.terminate()
        psutil.wait_procs(self.processes, timeout=15)
        for process in self.processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(self.processes, timeout=10)
        for node in self.nodes:
            node.wait(timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)


def _address(number: int) -> str:
    """Of a node. Not 127.0.0.1, which Ray takes for the machine's outer address."""
    return f"127.0.0.{number + 2}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _child(pid: int, name: str) -> psutil.Process | None:
    return next((child for child in _tree(pid)[1:] if child.name() == name), None)


def _children(process: psutil.Process | None) -> list[psutil.Process]:
    return [] if process is None else _tree(process.pid)[1:]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
