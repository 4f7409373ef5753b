"""What `atelier doctor` makes of what it saw: from facts of a cluster to checks, each with what to do.

Plain functions of plain values, in the driver; `doctor` gathers the facts. A place is a node of the cluster or the
driver, from which a run starts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.training.room import amounts, ask_less, asked, fits

GIBIBYTE = 1024**3
LEAST_FREE_BYTES = 5 * GIBIBYTE
SPILL_LIMIT = 0.95
"""Ray stores no more objects on a disk that is fuller than this (RAY_local_fs_capacity_threshold)."""

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of the doctor's answer; `do` is empty when all is well."""

    name: str
    status: Status
    seen: str
    do: str = ""

    def as_dict(self) -> dict[str, str]:
        return dict(vars(self))


@dataclass(frozen=True)
class Place:
    """What one process saw where it ran.

    `versions` by package (a reason in place of a version that cannot be had); `processors` that this place may use;
    bytes for the disk of Ray's session, /dev/shm and the object store; the errors are None where all went well.
    `siblings` are the places whose mark this one found in the storage, None when it was not asked.
    """

    name: str
    host: str
    versions: Mapping[str, str] = field(default_factory=dict)
    processors: int = 1
    resources: Mapping[str, float] = field(default_factory=dict)
    free_resources: Mapping[str, float] = field(default_factory=dict)
    disk_folder: str = "/tmp"
    disk_total: int = 0
    disk_free: int = 0
    shm_total: int = 0
    object_store: int = 0
    is_driver: bool = False
    silent: str | None = None
    source_error: str | None = None
    storage_error: str | None = None
    siblings: tuple[str, ...] | None = None
    mlflow_error: str | None = None


@dataclass(frozen=True)
class NodeGroup:
    """Nodes that an autoscaler may add: how many more, and what each brings."""

    name: str
    most: int
    resources: Mapping[str, float]


def check_versions(places: Sequence[Place]) -> Check:
    """The same packages everywhere: what is pickled on one machine is read on another."""
    answering = [place for place in places if place.silent is None]
    silent = [place for place in places if place.silent is not None]
    lines, todo = [], []
    for package in dict.fromkeys(name for place in answering for name in place.versions):
        seen: dict[str, list[str]] = defaultdict(list)
        for place in answering:
            seen[place.versions.get(package, "not there")].append(place.name)
        if len(seen) > 1:
            lines.append(f"{package}: " + "; ".join(f"{version} on {some(who)}" for version, who in seen.items()))
    missing = [
        (package, place.name)
        for place in answering
        for package, version in place.versions.items()
        if version.startswith("not ")
    ]
    if lines or missing:
        lines = lines or [f"{package} is not installed on {place}" for package, place in missing]
        todo.append(
            "install the same versions on every node (one image, or pip install --constraint constraints.txt -e .)"
        )
    if silent:
        lines.append("; ".join(f"{place.name}: {place.silent}" for place in silent))
        todo.append("look at those nodes with `ray status` and `ray list nodes`, or remove them")
    if lines:
        return Check("versions", "fail", ". ".join(lines), "; ".join(todo))
    shared = answering[0].versions if answering else {}
    return Check("versions", "ok", ", ".join(f"{package} {version}" for package, version in shared.items()))


def check_storage(uri: str, places: Sequence[Place]) -> Check:
    """Every place writes a file that every other one reads."""
    uri = without_password(uri)
    asked = [place for place in places if place.silent is None]
    failing = by_value([place for place in asked if place.storage_error], lambda place: place.storage_error or "")
    if failing:
        seen = "; ".join(f"{some(who)}: {without_password(error)}" for error, who in failing.items())
        return Check(
            "storage", "fail", seen, "give every node the right to write there, or set storage to another path or URI"
        )
    everyone = {place.name for place in asked}
    blind = {place.name: sorted(everyone - {place.name} - set(place.siblings or ())) for place in asked}
    blind = {name: unseen for name, unseen in blind.items() if unseen}
    if blind:
        name, unseen = next(iter(blind.items()))
        seen = f"{uri} can be written everywhere, but {name} does not see what {some(unseen)} wrote"
        if len(blind) > 1:
            seen += f" (and {len(blind) - 1} more like it)"
        return Check(
            "storage",
            "fail",
            seen + ": it is another folder on each machine",
            "set storage to what all nodes share: a mounted network folder under the same path, or s3://bucket/prefix",
        )
    readers = f", read by {'the others' if len(asked) > 2 else 'the other'}" if len(asked) > 1 else ""
    return Check("storage", "ok", f"{uri}: written by {some(sorted(everyone))}{readers}")


def check_mlflow(uri: str, error: str | None, exists: bool, places: Sequence[Place]) -> Check:
    """The store that a run is recorded in answers on the driver and on every node, whose rank 0 records."""
    shown, sqlite = without_password(uri), uri.startswith("sqlite:")
    if error is not None:
        do = (
            "check the path and its permissions, or set tracking.uri or MLFLOW_TRACKING_URI to a server's address"
            if sqlite
            else "start the server (mlflow server --host 0.0.0.0 --backend-store-uri … --artifacts-destination …), or "
            "set tracking.uri or MLFLOW_TRACKING_URI to one that answers"
        )
        return Check("mlflow", "fail", without_password(error), do)
    failing = by_value([place for place in places if place.mlflow_error], lambda place: place.mlflow_error or "")
    server = "run `mlflow server` where every node reaches it and set MLFLOW_TRACKING_URI to its address"
    if failing:
        seen = "; ".join(f"{some(who)}: {without_password(reason)}" for reason, who in failing.items())
        return Check("mlflow", "fail", f"{shown} answers here, but not everywhere: {seen}", server)
    hosts = {place.host for place in places}
    if sqlite and len(hosts) > 1:
        return Check("mlflow", "warn", f"{shown}: an SQLite file, used from {len(hosts)} machines", server)
    if not exists:
        return Check("mlflow", "ok", f"{shown}: will be made by the first run")
    nodes = sum(not place.is_driver for place in places)
    return Check("mlflow", "ok", f"{shown} answers here and on {nodes} node{'s' * (nodes != 1)}")


def check_resources(
    bundle: Mapping[str, float], number: int, places: Sequence[Place], groups: Sequence[NodeGroup] = ()
) -> Check:
    """`number` workers of `bundle` each fit on the nodes: on all of them, on what is free, on what may come."""
    want = asked(bundle, number)
    nodes = [place for place in places if not place.is_driver and place.resources]
    fit = sum(fits(bundle, node.resources) for node in nodes)
    if fit < number:
        coming = sum(fits(bundle, group.resources) * group.most for group in groups)
        have = ", ".join(f"{node.name} has {amounts(node.resources)}" for node in nodes[:4]) or "there are no nodes"
        if fit + coming >= number:
            names = some([group.name for group in groups if fits(bundle, group.resources)])
            return Check(
                "resources",
                "warn",
                f"{want}: {fit} fit{'s' * (fit == 1)} now; the autoscaler may add nodes of {names}",
                "nothing, if the nodes can be had: training waits for them (minutes)",
            )
        return Check(
            "resources",
            "fail",
            f"{want}: only {fit} fit{'s' * (fit == 1)} ({have})",
            ask_less(bundle) + ", or add nodes",
        )
    free = sum(fits(bundle, node.free_resources) for node in nodes)
    if free < number:
        return Check(
            "resources",
            "warn",
            f"{want}: {fit} fit, but only {free} beside what runs now",
            "wait for the other work to end (`ray status` shows it), or training waits for it",
        )
    threads = bundle.get("CPU", 0) * number
    hosts = {place.host: place.processors for place in places if not place.is_driver}
    processors = sum(hosts.values())
    if threads > processors:
        return Check(
            "resources",
            "warn",
            f"{want}: {threads:g} threads on {processors} processors, since Ray is told of more than there are",
            "lower training.num_workers or training.threads_per_worker: more threads than processors are slower",
        )
    return Check("resources", "ok", f"{want}: {fit} fit")


def check_disks(places: Sequence[Place]) -> Check:
    """Room where Ray keeps its session, spilled objects and logs."""
    status: Status = "ok"
    lines = []
    for place in places:
        if place.silent is not None or not place.disk_total:
            continue
        used = 1 - place.disk_free / place.disk_total
        line = f"{place.name}: {bytes_as_text(place.disk_free)} free in {place.disk_folder}"
        if used > SPILL_LIMIT:
            status = "fail"
            lines.append(f"{line}, {used:.0%} used: Ray puts no more objects there")
        elif place.disk_free < LEAST_FREE_BYTES:
            status = "warn" if status == "ok" else status
            lines.append(line)
    if lines:
        return Check(
            "disk",
            status,
            "; ".join(lines),
            "free some space there, give the node a larger disk, or start Ray with --temp-dir on another one",
        )
    least = min((place for place in places if place.disk_total), key=lambda place: place.disk_free, default=None)
    return Check("disk", "ok", f"at least {bytes_as_text(least.disk_free)} free" if least else "no node was asked")


def check_shared_memory(places: Sequence[Place]) -> Check:
    """/dev/shm holds the object store that Ray was told of; otherwise Ray puts it on a disk, which is slow."""
    small = [place for place in places if place.object_store and place.shm_total < place.object_store]
    if small:
        seen = "; ".join(
            f"{place.name}: /dev/shm has {bytes_as_text(place.shm_total)}, the object store "
            f"{bytes_as_text(place.object_store)}"
            for place in small
        )
        return Check(
            "shared memory",
            "warn",
            seen,
            "give the container more (docker run --shm-size, an emptyDir of medium Memory), or start Ray with a "
            "smaller --object-store-memory",
        )
    stores = [place for place in places if place.object_store]
    least = min(stores, key=lambda place: place.shm_total, default=None)
    if least is None:
        return Check("shared memory", "ok", "no node has an object store")
    return Check(
        "shared memory",
        "ok",
        f"/dev/shm {bytes_as_text(least.shm_total)}, object store {bytes_as_text(least.object_store)} at least",
    )


def check_source(path: str | None, error: str | None, places: Sequence[Place]) -> Check:
    """The corpus is there for the driver, and its path for every node. `path` is None for a built-in corpus."""
    if error is not None:
        return Check("data source", "fail", error, "correct data.source in the conf, or fetch the corpus")
    failing = [place for place in places if place.source_error]
    if failing:
        seen = "; ".join(f"{place.name}: {place.source_error}" for place in failing)
        return Check(
            "data source",
            "fail",
            seen,
            "mount the corpus under the same path on every node, since each reads a part of it",
        )
    if path is None:
        return Check("data source", "ok", "comes with the installed packages")
    return Check("data source", "ok", f"{path}: seen from {some([place.name for place in places])}")


# --- small words ----------------------------------------------------------------------------------------------


def bytes_as_text(count: float) -> str:
    return f"{count / GIBIBYTE:.1f} GiB"


def some(names: Sequence[str], most: int = 3) -> str:
    """A few of `names`, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def without_password(text: str) -> str:
    """`text` without what stands between // and @ in addresses, and without keys in their queries."""
    text = re.sub(r"(?<=://)[^/@\s]+@", "…@", text)
    return re.sub(r"(?i)((?:access_key|secret_key|session_token|password|token)=)[^&\s]+", r"\1…", text)


def by_value(places: Iterable[Place], value: Callable[[Place], Any]) -> dict[Any, list[str]]:
    """Names of places by what `value` gives for them."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for place in places:
        groups[value(place)].append(place.name)
    return dict(groups)
