"""What would be sent to a cluster: checked commands, absolute paths, a package of sources, and no secret."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from jobs.arguments import as_words, parse_command
from pipeline.errors import ClusterError, SpecError, SubmissionError
from pipeline.operations.submit import (
    SIZE_LIMIT_VARIABLE,
    STOP_WAIT_VARIABLE,
    Request,
    check_request,
    job_environment,
    packed,
    without_secret,
)
from pipeline.spec import load_spec
from pipeline.tuning.space import load_campaign
from tests.command_line import run_here

REPOSITORY = Path(__file__).parents[2]
CONF = REPOSITORY / "conf" / "image_vae.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The submitter's directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def _conf(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(yaml.safe_load(CONF.read_text()) | changes))
    return path


def checked(verb: str, *words: str) -> tuple[Request, list[str]]:
    command, values = parse_command(verb, list(words))
    request = check_request(verb, values)
    return request, as_words(command, request.values)


# --- paths ----------------------------------------------------------------------------------------------------


def test_spec_means_the_same_in_the_jobs_directory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = {"uri": "sqlite:///runs.db"}
    _conf(here / "mine.yaml", storage="my store: here", tracking=tracking)
    source = ["data.source.kind=files", "data.source.path=pictures"]
    request, words = checked("train", "mine.yaml", *[w for s in source for w in ("--set", s)], "--set=training.lr=3e-4")
    assert words[0] == "mine.yaml" and request.confs == {"mine.yaml": here / "mine.yaml"}
    assert len(request.notes) == 3, "each change is said"
    with packed(request.confs) as folder:
        monkeypatch.chdir(folder)
        spec = load_spec(words[0], [word.removeprefix("--set=") for word in words[1:]])
    assert spec.storage == f"{here}/my store: here"
    assert spec.data.source.kind == "files" and spec.data.source.path == f"{here}/pictures"
    assert spec.tracking.uri == f"sqlite:///{here}/runs.db"
    assert spec.training.lr == 3e-4


def test_absolute_paths_and_addresses_are_sent_as_they_are(here: Path) -> None:
    _conf(here / "mine.yaml", tracking={"uri": "http://mlflow.example.com"})
    request, words = checked("train", "mine.yaml", "--set", "storage=s3://bucket/runs")
    assert words == ["mine.yaml", "--set=storage=s3://bucket/runs"]
    assert request.notes == []


@pytest.mark.parametrize("path", ["a-dataset-of-the-hub", "s3://bucket/dataset"])
def test_a_dataset_s_name_is_no_path(path: str, here: Path) -> None:
    _conf(here / "mine.yaml", storage="/storage")
    source = ["--set", "data.source.kind=huggingface", "--set", f"data.source.path={path}"]
    request, words = checked("train", "mine.yaml", *source)
    assert f"--set=data.source.path={path}" in words and request.notes == []


def test_remote_storage_without_a_server_is_warned_about(here: Path) -> None:
    _conf(here / "mine.yaml")
    request, _ = checked("train", "mine.yaml", "--set", "storage=s3://bucket/runs")
    assert "MLFLOW_TRACKING_URI" in request.notes[0]


@pytest.mark.parametrize("place", ["search/mine.yaml", "../search/mine.yaml"])
@pytest.mark.parametrize("absolute", [False, True])
def test_campaign_finds_its_conf_in_the_package(
    here: Path, place: str, absolute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = here / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    conf = _conf((work / place).parent.parent / "base.yaml")
    campaign = yaml.safe_load((REPOSITORY / "conf" / "search" / "image_vae.yaml").read_text())
    campaign |= {"conf": str(conf) if absolute else "../base.yaml", "set": ["seed=4"]}
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text(yaml.safe_dump(campaign))
    request, words = checked("tune", place, "--set", "budget.trials=3")
    with packed(request.confs) as folder:
        monkeypatch.chdir(folder)
        found = load_campaign(words[0], [word.removeprefix("--set=") for word in words[1:]])
    assert found.base.storage == f"{work}/storage"
    assert found.base.seed == 4 and found.spec.budget.trials == 3
    assert not Path(found.spec.conf).is_absolute()


def test_retraining_is_told_to_begin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.operations.schedule_file import load_retraining

    monkeypatch.chdir(REPOSITORY)
    request, words = checked("retrain", "conf/schedule/image_vae.yaml")
    assert set(request.confs) == {"conf/schedule/image_vae.yaml", "conf/image_vae.yaml"}
    assert "--once" in words
    overrides = [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    assert load_retraining(words[0], overrides).base.storage == f"{REPOSITORY}/storage"
    assert "--once" not in checked("retrain", "conf/schedule/image_vae.yaml", "--dry-run")[1]


def test_generated_files_come_where_the_user_is(here: Path) -> None:
    _, words = checked("generate", "models:/digits@champion", "--count", "3", "--prompt=-- 'x' $HOME")
    assert words[0] == "models:/digits@champion"
    assert f"--out={here}/samples" in words and f"--storage={here}/storage" in words
    assert "--count=3" in words and "--prompt=-- 'x' $HOME" in words


def test_model_folder_is_made_absolute(here: Path) -> None:
    _, words = checked("evaluate", "runs/a/bundle", "--set", "evaluation.samples=50")
    assert words[0] == f"{here}/runs/a/bundle"


def test_evaluation_without_a_storage_asks_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.com")
    assert checked("evaluate", "models:/digits/1")[1] == ["models:/digits/1"]


# --- mistakes -------------------------------------------------------------------------------------------------


def test_all_mistakes_are_found_before_anything_is_sent(here: Path) -> None:
    _conf(here / "mine.yaml")
    with pytest.raises(SpecError, match=r"(?s)2 mistakes.*placement.*did you mean 'lr'"):
        checked("train", "mine.yaml", "--set=training.lrr=1", "--set=training.placement=here")
    with pytest.raises(SpecError, match=r"changes evaluation"):
        checked("evaluate", "models:/digits/1", "--set", "training.lr=1")
    with pytest.raises(SpecError, match=r"did you mean 'samples'"):
        checked("evaluate", "models:/digits/1", "--set", "evaluation.sample=1")


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:pa55@mlflow.example.com",
        "https://pa55@mlflow.example.com",
        "postgresql://me:pa55@host/db",
        "postgresql://host/db?password=pa55",
        "s3://key:pa55@bucket/runs",
        "s3://bucket/runs?secret_key=pa55",
    ],
)
def test_password_in_an_address_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(SubmissionError) as caught:
        without_secret("MLFLOW_TRACKING_URI", uri)
    assert "pa55" not in str(caught.value)
    assert "MLFLOW_TRACKING_PASSWORD" in str(caught.value), "and what to do is"


@pytest.mark.parametrize(
    "uri", ["http://mlflow.example.com:5000", "postgresql://me@host/db", "sqlite:////a/b.db", "/a"]
)
def test_address_without_a_password_is_taken(uri: str) -> None:
    assert without_secret("storage", uri) == uri


def test_package_over_rays_limit_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = _conf(here / "mine.yaml")
    conf.write_text(conf.read_text() + "#" * 2_000_000)
    with packed({"mine.yaml": conf}):
        pass
    monkeypatch.setenv(SIZE_LIMIT_VARIABLE, "2000000")
    with (
        pytest.raises(SubmissionError, match=r"takes less than 2,000,000; the largest file is .*mine\.yaml"),
        packed({"mine.yaml": conf}),
    ):
        pass


# --- what is sent ---------------------------------------------------------------------------------------------


def test_package_is_the_sources_and_the_confs(here: Path) -> None:
    (here / ".env").write_text("KEY=secret")
    (here / "data.csv").write_text("1,2")
    request, _ = checked("train", str(_conf(here / "mine.yaml")))
    with packed(request.confs) as folder:
        sent = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "pipeline", "jobs"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    there = {name for name in listed.stdout.split() if (REPOSITORY / name).exists()}
    assert sent == there | {"mine.yaml"}


def test_package_runs_where_nothing_else_of_the_project_is(here: Path) -> None:
    request, words = checked("train", str(_conf(here / "mine.yaml")), "--dry-run")
    # What `python -m jobs` does, after telling where the package's module is found from.
    code = (
        "import runpy, sys; import pipeline.data.prepare as p; print(p.__file__, file=sys.stderr, flush=True)\n"
        "runpy.run_module('jobs', run_name='__main__')"
    )
    with packed(request.confs) as folder:
        result = subprocess.run(
            [sys.executable, "-c", code, "train", *words], cwd=folder, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        assert Path(result.stderr.splitlines()[0]).is_relative_to(folder), result.stderr
    assert json.loads(result.stdout)["spec"]["storage"] == f"{here}/storage"


def test_environment_of_a_job_is_what_it_needs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    monkeypatch.setenv("WANTED", "yes")
    sent = job_environment(["WANTED"])
    assert sent.pop("WANTED") == "yes"
    assert sent.pop("MLFLOW_TRACKING_URI") == f"sqlite:///{here}/runs.db"
    assert set(sent) == {
        "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY", "RAY_JOB_STOP_WAIT_TIME_S"
    }  # fmt: skip
    assert "planted" not in sent.values()
    with pytest.raises(SubmissionError, match="--env NOT_THERE"):
        job_environment(["NOT_THERE"])


# --- time to end ----------------------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a job of no cluster would have in its environment."""
    environment: dict[str, str] = {}

    def send(client: Any, verb: str, words: list[str], folder: Path, variables: dict[str, str]) -> str:
        environment.update(variables)
        return "a-job"

    monkeypatch.setattr("pipeline.operations.cluster.send", send)
    monkeypatch.setattr("pipeline.operations.cluster.connect", lambda address: SimpleNamespace(get_address=lambda: ""))
    monkeypatch.delenv(STOP_WAIT_VARIABLE, raising=False)
    return environment


LONG = "training.stop_seconds=60"


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        (("train", "mine.yaml"), 35),
        (("train", "mine.yaml", "--set", LONG), 75),
        (("train", "mine.yaml", "--set", "training.stop_seconds=60.5"), 76),
        (("train", "mine.yaml", "--set", "training.stop_seconds=0"), 35),
        (("tune", str(REPOSITORY / "conf/search/image_vae.yaml"), "--set", f"set=[{LONG}]"), 75),
        (("retrain", str(REPOSITORY / "conf/schedule/image_vae.yaml"), "--set", f"set=[{LONG}]"), 75),
        (("evaluate", "models:/a@champion"), 35),
    ],
)
def test_a_job_that_is_stopped_has_time_for_the_checkpoint_of_its_spec(
    words: tuple[str, ...], seconds: int, here: Path, sent: dict[str, str]
) -> None:
    _conf(here / "mine.yaml")
    code, answer, errors = run_here("submit", *words, "--no-wait")
    assert code == 0 and answer["job_id"] == "a-job", errors
    assert sent[STOP_WAIT_VARIABLE] == str(seconds)


def test_what_the_submitter_says_of_the_time_to_end_counts(
    here: Path, sent: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STOP_WAIT_VARIABLE, "600")
    _conf(here / "mine.yaml")
    assert run_here("submit", "train", "mine.yaml", "--set", LONG, "--no-wait")[0] == 0
    assert sent[STOP_WAIT_VARIABLE] == "600"


@pytest.mark.parametrize(
    ("variables", "ends_after", "status"),
    [
        ({STOP_WAIT_VARIABLE: "75"}, 90, "STOPPED"),
        ({STOP_WAIT_VARIABLE: "75"}, 110, None),
        ({}, 50, "STOPPED"),
        ({}, 70, None),
    ],
)
def test_a_job_that_is_to_stop_is_waited_for_until_ray_has_killed_it(
    variables: dict[str, str], ends_after: float, status: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.job_submission import JobStatus

    from pipeline.operations import cluster

    seconds = 0.0

    def sleep(more: float) -> None:
        nonlocal seconds
        seconds += more

    def get_job_info(job_id: str) -> Any:
        status = JobStatus.STOPPED if seconds >= ends_after else JobStatus.RUNNING
        return SimpleNamespace(status=status, runtime_env={"env_vars": variables})

    monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: seconds, sleep=sleep))
    client: Any = SimpleNamespace(stop_job=lambda _: True, get_job_info=get_job_info, get_address=lambda: "http://head")
    if status is not None:
        assert cluster.stop(client, "a-job") == status
    else:
        with pytest.raises(ClusterError, match=r"a-job is RUNNING .* after it was told to stop"):
            cluster.stop(client, "a-job")


# --- the command line -----------------------------------------------------------------------------------------


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in kept:
            connection.close()


def test_cluster_that_does_not_answer_is_one_clear_error(
    here: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.operations.cluster._Client.patience", (5, 0.5))
    _conf(here / "mine.yaml")
    for address, reason in (("http://127.0.0.1:9", "no connection"), (silent_server, "no answer in time")):
        code, answer, errors = run_here("submit", "train", "mine.yaml", "--address", address)
        assert code == 1 and answer["kind"] == "ClusterError"
        assert address in answer["error"] and reason in answer["error"]
        assert "Traceback" not in errors


def test_mistakes_of_a_command_line_end_with_2(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _conf(here / "mine.yaml")
    for mistake in (["mine.yaml", "--set", "training.lrr=1"], ["mine.yaml", "--sett", "a=1"]):
        assert run_here("submit", "train", *mistake, "--address", "http://127.0.0.1:9")[0] == 2
    assert run_here("submit", "trian", "mine.yaml")[0] == 2
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    code, answer, _ = run_here("submit", "train", "mine.yaml")
    assert code == 2 and "--address http://HEAD:8265" in answer["error"]


def test_joining_a_cluster_that_is_not_there_is_one_clear_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test may have left one running
    _conf(here / "mine.yaml")
    for address, words in (("127.0.0.1:9", "cannot be joined"), ("http://127.0.0.1:9", "atelier submit")):
        code, answer, errors = run_here("prepare", "mine.yaml", "--address", address)
        assert code == 1 and answer["kind"] == "ClusterError" and words in answer["error"]
        assert "Traceback" not in errors


# --- a log ----------------------------------------------------------------------------------------------------


def test_log_that_breaks_is_written_once() -> None:
    from pipeline.operations.cluster import _Log

    written: list[str] = []
    log = _Log(written.append)
    whole = 'one\ntwo\n{"a": 1}\nafter\n'
    for cut in (5, 12, len(whole)):
        position = 0
        for start in range(0, cut, 3):
            position = log.take(position, whole[start : min(start + 3, cut)])
    assert "".join(written) == whole
    assert log.answer() == '{"a": 1}'
