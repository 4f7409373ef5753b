"""`conf/kubernetes/`: only fields that KubeRay has, the project's versions, real commands, and no secret in a file."""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from apscheduler.triggers.cron import CronTrigger

from jobs.__main__ import app
from pipeline.operations.schedule_file import load_retraining
from pipeline.spec import load_spec

FOLDER = Path("conf/kubernetes")
FILES = sorted(FOLDER.glob("*.yaml"))
PINNED = dict(line.split("==") for line in Path("constraints.txt").read_text().split() if "==" in line)
PROJECT = Path("pyproject.toml").read_text()
VERSION = PROJECT.split('\nversion = "')[1].split('"')[0]
PYTHON = PROJECT.split('requires-python = ">=')[1].split('"')[0].replace(".", "")
WORKDIR = "/home/ray/atelier"
USAGE_ERROR: Any = typer.BadParameter.__base__

RESOURCE = {"apiVersion", "kind", "metadata", "spec"}
# Of the CRD reference of KubeRay 1.7.0 (docs/reference/api.md); what is not of use here is left out.
RAY_CLUSTER = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "rayVersion",
    "suspend",
    "workerGroupSpecs",
}
AUTH = {"mode", "secretName"}
AUTOSCALER = {"idleTimeoutSeconds", "resources", "upscalingMode", "version"}
HEAD_GROUP = {"labels", "rayStartParams", "resources", "serviceType", "template"}
WORKER_GROUP = {
    "groupName",
    "idleTimeoutSeconds",
    "labels",
    "maxReplicas",
    "minReplicas",
    "numOfHosts",
    "priority",
    "rayStartParams",
    "replicas",
    "resources",
    "template",
}
RAY_JOB = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "entrypoint",
    "entrypointNumCpus",
    "preRunningDeadlineSeconds",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "suspend",
    "ttlSecondsAfterFinished",
}
RAY_CRON_JOB = {"jobTemplate", "schedule", "suspend", "timeZone"}
# Of the reference of Kubernetes 1.27 (batch/v1, core/v1).
CRON_JOB = {
    "concurrencyPolicy",
    "failedJobsHistoryLimit",
    "jobTemplate",
    "schedule",
    "startingDeadlineSeconds",
    "successfulJobsHistoryLimit",
    "suspend",
    "timeZone",
}
JOB = {"activeDeadlineSeconds", "backoffLimit", "template", "ttlSecondsAfterFinished"}
POD = {"containers", "restartPolicy", "serviceAccountName", "terminationGracePeriodSeconds", "tolerations", "volumes"}
CONTAINER = {"args", "command", "env", "image", "name", "ports", "resources", "volumeMounts", "workingDir"}


def read(name: str) -> dict[str, Any]:
    (tree,) = yaml.safe_load_all((FOLDER / name).read_text())
    assert isinstance(tree, dict)
    return tree


def ray_job(tree: dict[str, Any]) -> dict[str, Any] | None:
    spec = tree["spec"]
    return {"RayJob": spec, "RayCronJob": spec.get("jobTemplate")}.get(tree["kind"])


def ray_cluster(tree: dict[str, Any]) -> dict[str, Any] | None:
    job = ray_job(tree)
    if job is not None:
        cluster: dict[str, Any] = job["rayClusterSpec"]
        return cluster
    return tree["spec"] if tree["kind"] == "RayCluster" else None


def pods(tree: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = ray_cluster(tree)
    if cluster is None:
        return [tree["spec"]["jobTemplate"]["spec"]["template"]["spec"]]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def containers(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for pod in pods(tree) for container in pod["containers"]]


def commands(tree: dict[str, Any]) -> list[list[str]]:
    """The commands that a file runs, as words."""
    job = ray_job(tree)
    if job is not None:
        return [shlex.split(job["entrypoint"])]
    return [[*c["command"], *c.get("args", [])] for c in containers(tree) if "command" in c]


def mentioned_commands() -> Iterator[tuple[str, list[str]]]:
    """`atelier …` as files and their comments tell people to type it."""
    for path in [*FILES, FOLDER / "README.md", FOLDER / "Dockerfile", Path("cluster.yaml")]:
        text = re.sub(r"\\\n\s*#?\s*", " ", path.read_text())
        for match in re.finditer(r"(?:^|[#'=\s])(atelier (?:doctor|submit|train|retrain|tune) [^'\n(]*)", text):
            yield path.name, shlex.split(match[1])


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command and its values, as `atelier` itself reads them. Raises: USAGE_ERROR on a mistake."""
    assert words[0] == "atelier"
    group: Any = typer.main.get_command(app)
    name, command, rest = group.resolve_command(group.context_class(group), words[1:])
    context = command.make_context(name, list(rest))
    if name == "submit":
        from jobs.arguments import parse_command

        verb = context.params["verb"]
        return verb, parse_command(verb, context.args)[1] | {"address": context.params["address"]}
    return name, dict(context.params)


def confs_exist(values: dict[str, Any]) -> None:
    """Every conf that is named is in the repository, and is valid with what is set."""
    named = [value for value in values.values() if isinstance(value, Path)]
    assert named
    for path in named:
        local = Path(str(path).removeprefix(WORKDIR + "/").removeprefix("atelier/"))
        assert local.is_file(), f"{path} is not there"
        load = load_retraining if local.is_relative_to("conf/schedule") else load_spec
        load(local, values.get("overrides") or [])


def test_there_is_a_file_of_each_kind() -> None:
    kinds = {(tree["apiVersion"], tree["kind"]) for tree in map(read, [path.name for path in FILES])}
    assert kinds == {
        ("ray.io/v1", "RayCluster"),
        ("ray.io/v1", "RayJob"),
        ("ray.io/v1", "RayCronJob"),
        ("batch/v1", "CronJob"),
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_field_is_one_that_the_reference_has(path: Path) -> None:
    tree = read(path.name)
    assert tree.keys() == RESOURCE and {"name", "generateName"} & tree["metadata"].keys()
    if tree["kind"] == "CronJob":
        assert tree["spec"].keys() <= CRON_JOB and tree["spec"]["jobTemplate"]["spec"].keys() <= JOB
    if tree["kind"] == "RayCronJob":
        assert tree["spec"].keys() <= RAY_CRON_JOB
    job, cluster = ray_job(tree), ray_cluster(tree)
    assert job is None or job.keys() <= RAY_JOB
    if cluster is not None:
        assert cluster.keys() <= RAY_CLUSTER
        assert cluster["authOptions"].keys() <= AUTH and cluster["authOptions"]["mode"] == "token"
        assert cluster.get("autoscalerOptions", {}).keys() <= AUTOSCALER
        assert cluster["headGroupSpec"].keys() <= HEAD_GROUP
        for group in cluster["workerGroupSpecs"]:
            assert group.keys() <= WORKER_GROUP
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for pod in pods(tree):
        assert pod.keys() <= POD
        for container in pod["containers"]:
            assert container.keys() <= CONTAINER
            assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", container["name"])
            assert all(isinstance(entry.get("value", ""), str) for entry in container.get("env", []))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_images_and_ray_are_the_projects_versions(path: Path) -> None:
    tree = read(path.name)
    tag = f"{VERSION}-ray{PINNED['ray']}-py{PYTHON}"
    for container in containers(tree):
        gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].rpartition(":")[2] == tag + ("-gpu" if gpu else ""), container["name"]
    cluster = ray_cluster(tree)
    assert cluster is None or cluster["rayVersion"] == PINNED["ray"]


def test_the_image_has_the_projects_versions() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    assert f"\nFROM rayproject/ray:{PINNED['ray']}-py{PYTHON}-${{FLAVOUR}}\n" in text
    assert f"torch=={PINNED['torch']} " in text and f"atelier:{VERSION}-ray{PINNED['ray']}-py{PYTHON}" in text
    assert f"\nWORKDIR {WORKDIR}\n" in text
    copied = {word for line in text.splitlines() if line.startswith("COPY") for word in line.split()[2:-1]}
    assert {"pipeline", "jobs", "conf", "constraints.txt", "pyproject.toml"} <= copied
    assert all(Path(name).exists() for name in copied)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_memory_and_processors_that_are_asked_for_are_the_limits(path: Path) -> None:
    for container in containers(read(path.name)):
        asked, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert asked["memory"] == limits["memory"] and asked["cpu"] == limits["cpu"], container["name"]
        assert asked.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


def test_gpu_workers_come_from_zero() -> None:
    (gpu,) = (group for group in read("raycluster.yaml")["spec"]["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert (gpu["minReplicas"], gpu["replicas"]) == (0, 0) and gpu["maxReplicas"] > 0
    assert read("raycluster.yaml")["spec"]["enableInTreeAutoscaling"] is True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_is_in_a_file(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"kind: Secret\b|AKIA[A-Z0-9]{12}|://[^/\s\"]+:[^/\s\"]+@", text)
    for container in containers(read(path.name)):
        for entry in container.get("env", []):
            secret = re.search(r"KEY|SECRET|TOKEN|PASSWORD", entry["name"])
            assert bool(secret) == (entry.get("valueFrom", {}).keys() == {"secretKeyRef"}), entry["name"]
            assert not (secret and "value" in entry)


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycronjob.yaml", "cronjob.yaml"])
def test_what_is_run_is_a_command_whose_conf_is_there(name: str) -> None:
    tree = read(name)
    ran = commands(tree)
    assert ran
    for words in ran:
        verb, values = parsed(words)
        assert verb == ("train" if tree["kind"] == "RayJob" else "retrain")
        confs_exist(values)
        if ray_job(tree) is not None:
            # A job's driver starts in a folder of Ray's session.
            assert all(path.is_absolute() for path in values.values() if isinstance(path, Path))
        else:
            cluster = read("raycluster.yaml")["metadata"]["name"]
            assert values["address"] == f"http://{cluster}-head-svc:8265"


def test_a_command_that_is_wrong_would_be_seen() -> None:
    for line in ("atelier trainn conf/image_vae.yaml", "atelier train conf/image_vae.yaml --sett a=1"):
        with pytest.raises(USAGE_ERROR):
            parsed(line.split())
    with pytest.raises(AssertionError, match="is not there"):
        confs_exist(parsed(["atelier", "train", "conf/no.yaml"])[1])


def test_what_people_are_told_to_type_are_commands_whose_confs_are_there() -> None:
    told = list(mentioned_commands())
    assert {name for name, _ in told} >= {"README.md", "raycluster.yaml", "cluster.yaml"}
    for _, words in told:
        confs_exist(parsed(words)[1])


@pytest.mark.parametrize("name", ["raycronjob.yaml", "cronjob.yaml"])
def test_schedules_are_cron_expressions_in_a_time_zone(name: str) -> None:
    spec = read(name)["spec"]
    trigger = CronTrigger.from_crontab(spec["schedule"], timezone=spec["timeZone"])
    assert trigger.get_next_fire_time(None, datetime.datetime.now(trigger.timezone)) is not None


def test_two_nightly_retrainings_never_meet() -> None:
    cron, ray_cron = read("cronjob.yaml")["spec"], read("raycronjob.yaml")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    job = ray_cron["jobTemplate"]
    assert job["activeDeadlineSeconds"] + job["ttlSecondsAfterFinished"] < 24 * 3600


def test_the_workers_of_the_training_fit_their_pods() -> None:
    tree = read("rayjob.yaml")
    spec = load_spec("conf/image_vae.yaml", parsed(commands(tree)[0])[1]["overrides"])
    (group,) = tree["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    processors = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    threads = spec.training.threads_per_worker or 1
    # One processor is left for Ray's small tasks.
    assert group["replicas"] * ((processors - 1) // threads) >= spec.training.num_workers
