"""The doctor: looks at every node of a cluster, or at this machine, before something long is started there.  [ray]

Runs in the driver. A task pinned to each node (of no processors, so that a busy node answers too) runs the functions
of `probe`; `checks` judges what they saw. Nothing is left in the storage, and no MLflow store is made.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data.sources.huggingface import is_on_hub
from pipeline.errors import AtelierError, ClusterError
from pipeline.operations import checks, probe
from pipeline.operations.checks import Check, NodeGroup, Place
from pipeline.progress import Progress, silent
from pipeline.ray_session import gpus, ray_session
from pipeline.release.tracking import resolve_uri
from pipeline.spec import RunSpec
from pipeline.storage import open_store
from pipeline.workflow import open_base_corpus

import ray  # isort: skip  (after ray_session, which sets what Ray reads when it is imported)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip

CONNECT_WITHIN_SECONDS = 5
JOIN_WITHIN_SECONDS = 8
ANSWER_WITHIN_SECONDS = 60
UNLIMITED_NODES = 1000
DRIVER = "driver"


def doctor_job(spec: RunSpec | None = None, progress: Progress = silent, address: str | None = None) -> list[Check]:
    """Check the cluster at `address` (or RAY_ADDRESS), or a local Ray, for `spec`; without one what any run needs.

    Raises: ClusterError when there is no cluster that answers.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    progress("start", 0, None, f"joining {address}" if address else "starting Ray")
    with contextlib.ExitStack() as stack:
        if address:
            require_answer(address)
        try:
            stack.enter_context(ray_session(address))
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise _refused(address or "a local Ray", error) from error
        return _examine(spec, progress)


def _examine(spec: RunSpec | None, progress: Progress) -> list[Check]:
    storage = spec.storage if spec else "storage"
    source = source_path(spec) if spec else None
    with contextlib.suppress(AtelierError):  # a mistake in it is what the storage check tells
        storage = open_store(storage).uri

    progress("look", 0, None, "versions, disks, the data source")
    nodes = _Nodes()
    places = nodes.places(source)
    progress("storage", 0, None, checks.without_password(storage))
    folder = f".doctor-{uuid.uuid4().hex[:8]}"
    marked = nodes.ask(places, "storage_error", probe.write_mark, storage, folder, own_name=True)
    made = [answer.pop("made", False) for answer in marked.values()].count(True) > 0
    try:
        places = _joined(places, marked)
        writers = [place for place in places if place.storage_error is None]
        places = _joined(places, nodes.ask(writers, "storage_error", probe.read_marks, storage, folder))
        progress("mlflow", 0, None, "the tracking store, from every node")
        places, mlflow = _mlflow(spec, nodes, places, storage)
    finally:
        nodes.ask(places, "storage_error", probe.remove_marks, storage, folder, made)

    found = [checks.check_versions(places), checks.check_storage(storage, places), mlflow]
    if spec is not None:
        found.append(checks.check_resources(bundle_of(spec), _workers(spec), places, nodes.groups()))
        shown = getattr(spec.data.source, "path", None) if source is None else checks.without_password(source)
        found.append(checks.check_source(shown, _source_error(spec), places))
    return [*found, checks.check_disks(places), checks.check_shared_memory(places)]


def bundle_of(spec: RunSpec) -> dict[str, float]:
    """What one training worker of `spec` asks of its node, as `training.launch` asks for it."""
    training = spec.training
    use_gpu = gpus() >= _workers(spec) if training.use_gpu == "auto" else training.use_gpu
    return {"CPU": float(training.threads_per_worker or 1), "GPU": 1.0 if use_gpu else 0.0}


def _workers(spec: RunSpec) -> int:
    """Those without which it does not begin."""
    return max(1, spec.training.fewest_workers)


def source_path(spec: RunSpec) -> str | None:
    """What every node has to see of the corpus; None for one that is made or fetched where it is read."""
    path: str | None = getattr(spec.data.source, "path", None)
    if path is None or is_on_hub(spec.data.source):
        return None
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _source_error(spec: RunSpec) -> str | None:
    try:
        open_base_corpus(spec)
    except AtelierError as error:
        return str(error)
    return None


def _mlflow(spec: RunSpec | None, nodes: _Nodes, places: list[Place], storage: str) -> tuple[list[Place], Check]:
    """Ask the driver first: a store that is not there for it is nowhere."""
    try:
        uri = resolve_uri(open_store(storage), spec.tracking.uri if spec else None)
    except AtelierError as error:
        return places, checks.check_mlflow("", str(error), False, places)
    exists = not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()
    reason = _within(ANSWER_WITHIN_SECONDS, "mlflow_error", probe.reach_mlflow, uri)["mlflow_error"]
    if reason is None:
        others = [place for place in places if not place.is_driver]
        places = _joined(places, nodes.ask(others, "mlflow_error", probe.reach_mlflow, uri))
    return places, checks.check_mlflow(uri, reason, exists, places)


def _joined(places: list[Place], answers: Mapping[str, Mapping[str, Any]]) -> list[Place]:
    return [replace(place, **answers.get(place.name, {})) for place in places]


# --- the nodes ------------------------------------------------------------------------------------------------


class _Nodes:
    """The alive nodes of the joined cluster, and a way to ask each of them and the driver the same thing."""

    def __init__(self) -> None:
        # By value, so that a node with another version of this package, or without it, answers as well.
        ray.cloudpickle.register_pickle_by_value(probe)
        self.alive = dict(_named([node for node in ray.nodes() if node["Alive"]]))

    def places(self, source: str | None) -> list[Place]:
        """Every node and the driver, with what `probe.look` sees there."""
        session = ray._private.worker._global_node.get_session_dir_path()
        free = ray._private.state.available_resources_per_node()
        places = [Place(DRIVER, os.uname().nodename, is_driver=True)]
        for name, node in self.alive.items():
            resources = node["Resources"]
            store = int(resources.get("object_store_memory", 0))
            host = node["NodeManagerHostname"]
            available = free.get(node["NodeID"], {})
            places.append(Place(name, host, resources=resources, free_resources=available, object_store=store))
        return _joined(places, self.ask(places, "silent", probe.look, str(Path(session).parent), source))

    def ask(
        self, places: list[Place], reason: str, question: Callable[..., Any], *arguments: Any, own_name: bool = False
    ) -> dict[str, Any]:
        """What `question` gives at each of `places`, by name; {reason: why} from one that does not answer.

        With `own_name` the question takes the name of the place after `arguments`.
        """
        task = ray.remote(num_cpus=0, max_retries=0)(question)
        asked, answers = {}, {}
        for place in places:
            given = (*arguments, place.name) if own_name else arguments
            if place.is_driver:
                asked[place.name] = given
            elif place.silent is None:
                pinned = NodeAffinitySchedulingStrategy(self.alive[place.name]["NodeID"], soft=False)
                asked[place.name] = task.options(scheduling_strategy=pinned).remote(*given)
        if DRIVER in asked:
            answers[DRIVER] = _within(ANSWER_WITHIN_SECONDS, reason, question, *asked.pop(DRIVER))
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_WITHIN_SECONDS)
        for name, reference in asked.items():
            try:
                answers[name] = ray.get(reference, timeout=0.1)
            except ray.exceptions.GetTimeoutError:
                answers[name] = {reason: f"no answer in {ANSWER_WITHIN_SECONDS} s"}
            except ray.exceptions.RayError as error:
                answers[name] = {reason: str(error).strip().splitlines()[-1]}
        return answers

    def groups(self) -> list[NodeGroup]:
        """Nodes that the cluster's autoscaler may still add."""
        config = ray._private.state.state.get_cluster_config()
        groups = []
        for group in config.node_group_configs if config else ():
            there = sum(node.get("Labels", {}).get("ray.io/node-group") == group.name for node in self.alive.values())
            most = UNLIMITED_NODES if group.max_count < 0 else max(0, group.max_count - there)
            groups.append(NodeGroup(group.name, most, dict(group.resources)))
        return groups


def _named(nodes: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Nodes under names that people know: the address, with the start of the id where two share one."""
    addresses = [node["NodeManagerAddress"] for node in nodes]
    names = []
    for node, address in zip(nodes, addresses, strict=True):
        names.append(address if addresses.count(address) == 1 else f"{address}-{node['NodeID'][:6]}")
    return list(zip(names, nodes, strict=True))


def _within(seconds: float, reason: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` returns, or {reason: why} when it has not by then; its thread is left behind."""
    result: list[Any] = [{reason: f"no answer in {seconds:.0f} s"}]
    thread = threading.Thread(target=lambda: result.__setitem__(0, call(*arguments)), daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0]


# --- the cluster ----------------------------------------------------------------------------------------------


def require_answer(address: str) -> None:
    """Find out within seconds that no Ray can be joined at `address`. Raises: ClusterError."""
    if "://" in address:
        raise ClusterError(
            f"--address {address}: the doctor joins the cluster, and this is an address for jobs or clients; run it on "
            "a node of the cluster with --address auto, or give HOST:6379 of the head"
        )
    if address == "local":
        return
    if address == "auto":
        found = ray._private.services.canonicalize_bootstrap_address("auto")
        if found is None:
            raise _refused(address, ConnectionError("no Ray runs on this machine"))
        address = found
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_WITHIN_SECONDS).close()
    except ValueError:
        raise ClusterError(f"--address {address!r}: write auto or HOST:PORT, the head's port being 6379") from None
    except OSError as error:
        raise _refused(address, error) from None
    answer = _within(JOIN_WITHIN_SECONDS, "error", _ask_head, address)
    if answer["error"] is not None:
        raise ClusterError(
            f"{address}: what listens there does not let us in as a Ray head would: {answer['error']}; check the port "
            "(the head's is 6379 by default, 8265 is the dashboard's) and the token (RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN, or ~/.ray/auth_token)"
        )


def _ask_head(address: str) -> dict[str, str | None]:
    try:
        ray._raylet.GcsClient(address=address).internal_kv_keys(b"", namespace=None, timeout=CONNECT_WITHIN_SECONDS)
    except Exception as error:  # whatever Ray's client raises is the reason
        return {"error": str(error).strip().split(". ")[0] or type(error).__name__}
    return {"error": None}


def _refused(address: str, error: Exception) -> ClusterError:
    reason = " ".join(str(error).split())
    return ClusterError(
        f"{address}: no Ray cluster answers there: {reason[:300]}; start one (ray start --head), correct --address or "
        "RAY_ADDRESS, or leave both away to check this machine"
    )
