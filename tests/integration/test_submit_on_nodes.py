"""Jobs on three nodes with token authentication: submitted from elsewhere, stopped, and with a node lost."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.spec import load_spec
from tests.command_line import settings
from tests.integration.broken_off import assert_undisturbed, recorded_steps, until
from tests.integration.ray_nodes import TOKEN, RayNodes

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).parents[2]
CONF = REPOSITORY / "conf" / "image_vae.yaml"
ATELIER = [str(Path(sys.executable).parent / "atelier")]
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-Zq81",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-Zq82",
    "MADE_UP_TOKEN": "planted-token-Zq83",
}
SMALL = [
    "data.limit=400",
    "model.backbone.hidden=[32]",
    "model.family.latent_size=4",
    "training.steps=40",
    "training.max_seconds=null",
    "training.batch_size=16",
    "training.report_every=10",
    "training.checkpoint_every=20",
    "training.validate_every=20",
    "training.threads_per_worker=1",
    "training.num_workers=2",
    "training.placement=spread",
    "evaluation.nll_samples=5",
    "evaluation.samples=50",
]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is not the checkout, with a conf in it and things that are nobody's business."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "confs").mkdir()
    shutil.copy(CONF, folder / "confs")
    (folder / ".env").write_text(f"KEY={SECRETS['MADE_UP_TOKEN']}\n")
    (folder / "notes.txt").write_text(SECRETS["MADE_UP_TOKEN"])
    return folder


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


class User:
    """Someone at a terminal, whose environment holds secrets."""

    def __init__(self, nodes: RayNodes, folder: Path, **environment: str) -> None:
        self.nodes, self.folder = nodes, folder
        self.environment = nodes.environment(**{**SECRETS, **environment})

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        with (self.folder / "stderr.txt").open("w") as errors:
            return subprocess.Popen(
                [*ATELIER, *arguments, "--address", self.nodes.address],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def run(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=300)
        return process.returncode, json.loads(output.splitlines()[-1])

    def errors(self) -> str:
        return (self.folder / "stderr.txt").read_text()


@pytest.fixture
def user(nodes: RayNodes, elsewhere: Path) -> User:
    return User(nodes, elsewhere)


def _files_with(folder: Path, secret: str) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes():
            found.append(path)
    return found


@pytest.fixture(scope="module")
def submitted(nodes: RayNodes, elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same training on two nodes of the cluster and, at the same time, on a Ray of this machine alone."""
    alone = tmp_path_factory.mktemp("alone")
    here = subprocess.Popen(
        [*ATELIER, "train", "confs/image_vae.yaml", *settings(f"storage={alone}", *SMALL)],
        cwd=elsewhere,
        env=nodes.environment(RAY_AUTH_MODE="disabled"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    user = User(nodes, elsewhere)
    there = user.start("submit", "train", "confs/image_vae.yaml", *settings("storage=store", *SMALL))
    places: set[int] = set()
    while there.poll() is None:
        places |= set(nodes.workers_named("RayTrainWorker"))
        time.sleep(0.2)
    answers = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in (there, here)]
    return {"code": there.returncode, "places": places, "there": answers[0], "here": answers[1], "log": user.errors()}


def test_workers_on_two_nodes_give_the_scores_of_a_local_training(submitted: dict[str, Any]) -> None:
    assert submitted["code"] == 0, submitted["log"]
    assert submitted["places"] == {1, 2}, "two workers, each on a node of its own, none on the head"
    here, there = submitted["here"]["metrics"], submitted["there"]["metrics"]
    assert set(here) == set(there) and "test/nll_nats" in here
    # Equal data, seeds and global batches, one thread each, and a sum of two gradients is the same in either order.
    for key, value in here.items():
        assert there[key] == pytest.approx(value, rel=1e-6), key


def test_storage_is_the_one_of_the_submitters_directory(submitted: dict[str, Any], elsewhere: Path) -> None:
    assert Path(submitted["there"]["report"]).is_relative_to(elsewhere / "store")
    assert f"sent as '{elsewhere / 'store'}'" in submitted["log"]
    assert recorded_steps(elsewhere / "store", submitted["there"]["run_id"]) == [10, 20, 30, 40]


def test_log_was_shown_while_the_job_ran(submitted: dict[str, Any]) -> None:
    assert "Running entrypoint" in submitted["log"]
    assert "train 40/40" in submitted["log"]
    assert "Traceback" not in submitted["log"]


def test_no_secret_of_the_submitter_is_anywhere(
    submitted: dict[str, Any], nodes: RayNodes, elsewhere: Path, user: User
) -> None:
    job_information = nodes.get("/api/jobs/")
    packages = [path for path in nodes.logs().rglob("_ray_pkg_*") if path.is_dir()]
    assert "atelier-train-" in job_information and packages
    for secret in (*SECRETS.values(), TOKEN):
        assert secret not in job_information
        assert secret not in submitted["log"]
        assert not _files_with(elsewhere / "store", secret)
    for secret in SECRETS.values():
        assert not _files_with(nodes.logs(), secret)
    for package in packages:
        assert {path.name for path in package.iterdir()} <= {"pipeline", "jobs", "confs"}


def test_variable_asked_for_is_passed_on(nodes: RayNodes, elsewhere: Path) -> None:
    user = User(nodes, elsewhere, WANTED="wanted-value")
    code, answer = user.run(
        "submit", "prepare", "confs/image_vae.yaml", *settings("storage=store", *SMALL), "--env=WANTED"
    )
    assert code == 0 and set(answer["splits"]) == {"train", "validation", "test"}
    (job,) = [job for job in json.loads(nodes.get("/api/jobs/")) if "jobs prepare" in job["entrypoint"]]
    assert job["runtime_env"]["env_vars"]["WANTED"] == "wanted-value"
    assert not set(SECRETS) & set(job["runtime_env"]["env_vars"])


def test_exit_code_and_answer_of_a_job_that_fails_are_passed_on(submitted: dict[str, Any], user: User) -> None:
    code, answer = user.run("submit", "evaluate", "models:/nothing@champion", "--storage", "store")
    assert code == 2, user.errors()
    assert answer["kind"] == "RegistryError" and "no model 'nothing'" in answer["error"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"RAY_AUTH_TOKEN": "another-token-0123456789abcdef012"}, "refuses the token"),
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/no/such/file"}, "no token was found"),
    ],
)
def test_wrong_or_missing_token_is_one_clear_error(
    nodes: RayNodes, elsewhere: Path, changed: dict[str, str], words: str
) -> None:
    user = User(nodes, elsewhere, **changed)
    for arguments in (("jobs", "list"), ("submit", "train", "confs/image_vae.yaml")):
        code, answer = user.run(*arguments)
        assert code == 1 and answer["kind"] == "ClusterError"
        assert words in answer["error"] and words in user.errors()
        assert "Traceback" not in user.errors()


def test_plain_ray_job_submit_works_and_takes_no_rubbish_along(nodes: RayNodes, storage: Path) -> None:
    before = {path for path in nodes.logs().rglob("_ray_pkg_*") if path.is_dir()}
    ray = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", nodes.address, "--working-dir", "."]
    overrides = [f"storage={storage}", *SMALL, "name=plain", "training.num_workers=0"]
    command = ["python", "-m", "jobs", "train", "conf/image_vae.yaml", *settings(*overrides)]
    result = subprocess.run(
        [*ray, "--", *command], cwd=REPOSITORY, env=nodes.environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    answer = json.loads([line for line in result.stdout.splitlines() if line.startswith("{")][-1])
    assert recorded_steps(storage, answer["run_id"]) == [10, 20, 30, 40] and "test/nll_nats" in answer["metrics"]
    packages = {path for path in nodes.logs().rglob("_ray_pkg_*") if path.is_dir()} - before
    assert packages
    for package in packages:
        names = {path.name for path in package.iterdir()}
        assert {"pipeline", "jobs", "conf"} <= names
        assert names & {".git", ".venv", ".env", "storage", "tests", "mlflow.db"} == set()
        assert sum(path.stat().st_size for path in package.rglob("*")) < 5_000_000


def test_interrupted_job_is_killed_in_mlflow_and_leaves_nothing(nodes: RayNodes, storage: Path, user: User) -> None:
    from mlflow import MlflowClient

    long = settings(f"storage={storage}", *SMALL, "training.steps=1000000", "training.report_every=100")
    process = user.start("submit", "train", "confs/image_vae.yaml", *long)
    until(lambda: "examples/s" in user.errors(), process)
    at_work = nodes.commands_with("RayTrainWorker")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and json.loads(output)["kind"] == "KeyboardInterrupt"
    assert len(at_work) == 2

    def left() -> list[str]:
        return [line for word in ("RayTrainWorker", "jobs train") for line in nodes.commands_with(word)]

    until(lambda: not left(), seconds=15)
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, "params.`training.steps` = '1000000'")
    assert run.info.status == "KILLED"
    _, answer = user.run("jobs", "list")
    assert answer["jobs"][0]["status"] == "STOPPED"


def test_job_whose_driver_was_killed_goes_on_when_it_is_submitted_again(
    nodes: RayNodes, storage: Path, user: User
) -> None:
    more = ["name=killed", "training.steps=600", "training.checkpoint_every=30", "training.keep_checkpoints=100"]
    more += ["training.num_workers=1", "registry.name=null", "evaluation.nll_samples=2", "evaluation.samples=10"]
    overrides = [f"storage={storage}", *SMALL, *more, "seed=4"]
    train = ("submit", "train", "confs/image_vae.yaml", *settings(*overrides))
    submitter = user.start(*train)
    until(lambda: list(storage.glob("training/killed-*/step-*/state.json")), submitter)
    (driver,) = nodes.drivers("train")
    driver.kill()
    submitter.communicate(timeout=60)
    assert submitter.returncode == 128 + signal.SIGKILL
    until(lambda: not nodes.commands_with("RayTrainWorker"), seconds=30)
    saved = {path: path.stat().st_mtime_ns for path in storage.glob("training/killed-*/step-*/state.json")}
    (state,) = storage.glob("runs/killed-*/run.json")
    begun = json.loads(state.read_text())
    assert begun["status"] == "running" and "step-00000600" not in {path.parent.name for path in saved}

    code, answer = user.run(*train)
    assert code == 0, user.errors()
    assert answer["run_id"] == begun["run_id"]
    assert all(path.stat().st_mtime_ns == written for path, written in saved.items()), "their steps were taken once"
    assert_undisturbed(load_spec(CONF, overrides), answer)


def test_lost_node_does_not_end_the_job(nodes: RayNodes, storage: Path, user: User) -> None:
    from mlflow import MlflowClient

    overrides = [*SMALL, "name=lost", "training.steps=2000", "training.checkpoint_every=200", "seed=3"]
    code, sent = user.run(
        "submit", "train", "confs/image_vae.yaml", "--no-wait", *settings(f"storage={storage}", *overrides)
    )
    assert code == 0 and sent["address"] == nodes.address
    until(lambda: bool(list(storage.glob("training/lost-*/step-*/state.json"))))
    place = max(nodes.workers_named("RayTrainWorker"))
    raylet = nodes.raylets()[place]
    assert place in (1, 2) and isinstance(raylet, psutil.Process)
    raylet.kill()

    code, ended = user.run("jobs", "logs", sent["job_id"], "--follow")
    assert ended["status"] == "SUCCEEDED" and ended["exit_code"] == 0, user.errors()
    answer = json.loads([line for line in user.errors().splitlines() if line.startswith("{")][-1])
    run = MlflowClient(f"sqlite:///{storage}/mlflow.db").get_run(answer["run_id"])
    assert run.info.status == "FINISHED"
    assert recorded_steps(storage, answer["run_id"]) == list(range(10, 2001, 10))
    assert nodes.raylets()[place] is None, "the node stayed away"
