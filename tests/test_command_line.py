"""What a user meets when something is wrong: one clear error, an exit code, no traceback, one JSON line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(*arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    import os

    result = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    last = result.stdout.splitlines()[-1] if result.stdout else "{}"
    return result.returncode, json.loads(last), result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "conf/nothing.yaml"], 2, "there is no such spec"),
        (["train", "conf/image_vae.yaml", "--set", "training.lrr=1"], 2, "did you mean 'lr'?"),
        (["train", "conf/image_vae.yaml", "--set", "data.source.kind=files", "--set", "data.source.path=/no/such"], 2,
         "/no/such"),
        (["prepare", "conf/image_vae.yaml", "--set", "storage=/proc/no"], 1, "/proc/no"),
        (["evaluate", "models:/x@champion", "--set", "training.lr=1"], 2, "changes evaluation.… only"),
        (["generate", "models:/nothing@champion"], 2, "nothing"),
    ],
)  # fmt: skip
def test_mistake_gives_one_error_and_its_code(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    if arguments[0] == "generate":
        arguments = [*arguments, "--out", str(tmp_path / "out"), "--storage", str(tmp_path)]
        from pipeline.release.tracking import connect

        connect(f"sqlite:///{tmp_path}/mlflow.db", create=True)
    seen, answer, errors = run(*arguments)
    assert seen == code, errors
    assert words in answer["error"]
    assert words in errors
    assert "Traceback" not in errors


def test_debug_shows_the_traceback() -> None:
    _, _, errors = run("train", "conf/nothing.yaml", "--debug")
    assert "Traceback" in errors


def test_unknown_option_is_the_users_mistake() -> None:
    assert run("train", "conf/image_vae.yaml", "--sett", "a=1")[0] == 2


@pytest.mark.slow
def test_tracking_server_that_does_not_answer_is_said_before_training(tmp_path: Path) -> None:
    code, answer, errors = run(
        "train",
        "conf/image_vae.yaml",
        "--set",
        f"storage={tmp_path}",
        "--set",
        "training.num_workers=0",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )
    assert code == 1, errors
    assert answer["kind"] == "TrackingError"
    assert "127.0.0.1:9" in answer["error"]
    assert not list(tmp_path.glob("runs/*"))
