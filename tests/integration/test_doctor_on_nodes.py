"""The doctor on a real Ray: as a call, and as the installed command where things are wrong."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_nodes

from pipeline.operations.doctor import doctor_job
from pipeline.spec import load_spec
from tests.command_line import run_here

pytestmark = pytest.mark.ray


def atelier(*arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """The installed command as a user runs it: exit code, the last line of stdout, stderr."""
    import ray

    here = {} if "RAY_ADDRESS" in environment else {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    settings = {**os.environ, **here, "COLUMNS": "400", **environment}
    command = [str(Path(sys.executable).with_name("atelier")), "doctor", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=120)
    return result.returncode, json.loads(result.stdout.splitlines()[-1]), result.stderr


def statuses(checks: list[dict[str, str]]) -> dict[str, str]:
    return {check["name"]: check["status"] for check in checks}


def test_a_healthy_cluster_is_well_and_nothing_is_left(ray_cluster: None, tmp_path: Path) -> None:
    spec = load_spec("conf/image_vae.yaml", [f"storage={tmp_path}/storage", "training.threads_per_worker=1"])
    checks = doctor_job(spec)
    assert {check.name: check.status for check in checks if check.status == "fail"} == {}
    assert [check.name for check in checks] == [
        "versions",
        "storage",
        "mlflow",
        "resources",
        "data source",
        "disk",
        "shared memory",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_all_that_is_wrong_and_exits_with_1(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.socket() as listener:  # bound and not listening: nothing else takes the port, and nobody answers
        listener.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{listener.getsockname()[1]}"
        code, answer, errors = atelier(
            "conf/image_vae.yaml",
            *("--set", f"storage={tmp_path}/file/storage", "--set", "training.num_workers=64"),
            *("--set", "data.source.kind=files", "--set", f"data.source.path={tmp_path}/pictures"),
            MLFLOW_TRACKING_URI=server,
        )
    assert code == 1 and answer["ok"] is False
    seen = statuses(answer["checks"])
    assert [name for name, status in seen.items() if status == "fail"] == [
        "storage",
        "mlflow",
        "resources",
        "data source",
    ]
    by_name = {check["name"]: check for check in answer["checks"]}
    assert f"{tmp_path}/file" in by_name["storage"]["seen"]
    assert server in by_name["mlflow"]["seen"] and "mlflow server" in by_name["mlflow"]["do"]
    assert "64 workers of 1 CPU" in by_name["resources"]["seen"]
    assert all(check["do"] for check in answer["checks"] if check["status"] != "ok")
    assert by_name["mlflow"]["do"] in errors and "Traceback" not in errors


def test_the_command_on_a_healthy_cluster_exits_with_0(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    code, answer, errors = run_here("doctor", "conf/image_vae.yaml", "--set", f"storage={tmp_path}")
    assert (code, answer["ok"]) == (0, True), errors
    assert "what to do" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def split_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ray_nodes.RayNodes, Path]]:
    """A head and a worker that has another folder under the same path, as two machines without a network folder."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    apart = ["unshare", "--mount", "bash", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(folder)]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    start = subprocess.Popen
    with monkeypatch.context() as patch:
        patch.setattr(
            ray_nodes.subprocess,
            "Popen",
            lambda command, **k: start([*(() if "--head" in command else apart), *command], **k),
        )
        nodes = ray_nodes.RayNodes(workers=1)
    with nodes:
        yield nodes, folder


def test_a_storage_local_to_one_node_and_a_wrong_token_are_named(
    split_nodes: tuple[ray_nodes.RayNodes, Path],
) -> None:
    nodes, folder = split_nodes
    environment = nodes.environment(RAY_ADDRESS=f"127.0.0.2:{nodes.gcs_port}", RAY_TMPDIR=str(nodes.logs()))
    code, answer, errors = atelier("conf/image_vae.yaml", "--set", f"storage={folder}/storage", **environment)
    assert code == 1, errors
    failed = [check for check in answer["checks"] if check["status"] == "fail"]
    assert [check["name"] for check in failed] == ["storage"]
    assert "does not see what 127.0.0.3 wrote" in failed[0]["seen"] and "s3://" in failed[0]["do"]
    assert list(folder.iterdir()) == []

    code, answer, errors = atelier("conf/image_vae.yaml", **{**environment, "RAY_AUTH_TOKEN": "wrong"})
    assert (code, answer["kind"]) == (1, "ClusterError"), errors
    assert "InvalidAuthToken" in answer["error"] and "RAY_AUTH_TOKEN" in answer["error"]
