"""What a user meets when something is wrong: one clear error, an exit code, no traceback, one JSON line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.terminal import Terminal
from pipeline.progress import WARNING
from tests.command_line import Answer, run, run_here


# A process of its own for what is quick, and for one of each exit code; the others import Ray, torch and MLflow.
@pytest.mark.parametrize(
    ("start", "arguments", "code", "words"),
    [
        (run, ["train", "conf/nothing.yaml"], 2, "there is no such spec"),
        (run, ["train", "conf/image_vae.yaml", "--set", "training.lrr=1"], 2, "did you mean 'lr'?"),
        (run_here, ["train", "conf/image_vae.yaml", "--set", "data.source.kind=files",
                    "--set", "data.source.path=/no/such"], 2, "/no/such"),
        (run, ["doctor", "--address", "127.0.0.1:9"], 1, "no Ray cluster answers"),
        (run_here, ["prepare", "conf/image_vae.yaml", "--set", "storage=/proc/no"], 1, "/proc/no"),
        (run_here, ["evaluate", "models:/x@champion", "--set", "training.lr=1"], 2, "changes evaluation.… only"),
        (run_here, ["generate", "models:/nothing@champion"], 2, "nothing"),
        (run_here, ["release", "decide", "x", "--set", "training.lr=1"], 2, "takes release.… and evaluation.… only"),
        (run_here, ["lineage"], 2, "say either a model"),
        (run_here, ["lineage", "--record", "no-such-file"], 2, "neither a file, nor an id"),
    ],
)  # fmt: skip
def test_mistake_gives_one_error_and_its_code(
    start: Callable[..., Answer],
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if arguments[0] == "generate":
        storage = request.getfixturevalue("storage_with_mlflow")
        arguments = [*arguments, "--out", str(tmp_path / "out"), "--storage", str(storage)]
    seen, answer, errors = start(*arguments)
    assert seen == code, errors
    assert words in answer["error"]
    assert words in errors
    assert "Traceback" not in errors


def test_a_command_that_succeeds_exits_with_0_and_answers_in_one_line(tmp_path: Path) -> None:
    code, answer, errors = run("schema", "--out", str(tmp_path / "schema.json"))
    assert (code, answer) == (0, {"schema": str(tmp_path / "schema.json")}), errors
    assert "training" in json.loads((tmp_path / "schema.json").read_text())["properties"]


def test_a_job_in_this_process_answers_as_one_of_its_own() -> None:
    arguments = ("train", "conf/image_vae.yaml", "--set", "training.lrr=1")
    assert run_here(*arguments) == run(*arguments)


def test_debug_shows_the_traceback() -> None:
    _, _, errors = run("train", "conf/nothing.yaml", "--debug")
    assert "Traceback" in errors


def test_unknown_option_is_the_users_mistake() -> None:
    assert run("train", "conf/image_vae.yaml", "--sett", "a=1")[0] == 2


@pytest.mark.ray
def test_tracking_server_that_does_not_answer_is_said_before_training(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    settings = ("--set", f"storage={tmp_path}", "--set", "training.num_workers=0")
    code, answer, errors = run_here("train", "conf/image_vae.yaml", *settings)
    assert code == 1, errors
    assert answer["kind"] == "TrackingError"
    assert "127.0.0.1:9" in answer["error"]
    assert not list(tmp_path.glob("runs/*"))


def test_a_warning_is_said_as_it_is_and_never_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    for number in range(3):  # faster than progress is told
        terminal(WARNING, 0, None, f"number {number} of [3]")
    assert capsys.readouterr().err.splitlines() == [f"warning  number {number} of [3]" for number in range(3)]
