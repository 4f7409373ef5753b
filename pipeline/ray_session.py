"""Starting or joining Ray with settings said explicitly, and leaving it as it was found.  [ray]

Used by the driver of every job.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Health is polled every 2 s by default, and the end of a training is noticed by it; each poll takes a millisecond or
# two of the controller and of the thread that trains.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# A node that is taken away is noticed by polling, every 5 s by default; the shortest notice of a cloud is 30 s.
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
# Train tells about its V2 and its deprecated environment variables on every start.
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Workers of niceness 15, Ray's default, yield to every other process of the machine: an autoencoder on two cores
# trained 66 steps a second, and 79 at niceness 0.
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray.exceptions import RayError

from pipeline.errors import ClusterError

OF_RAY_DATA = (("datasets_stats_actor", "_dataset_stats_actor"), ("AutoscalingCoordinator", "AutoscalingCoordinator"))
"""Name and namespace of the actors that Ray Data leaves; it starts them again when it needs them."""
ANSWER_WITHIN_SECONDS = 5
LEAST_CPUS = 4
"""Logical processors of a local Ray: preparing, training and their small tasks must not wait for each other."""
OF_OWN_RAY = {
    # Ray keeps as many idle workers as it has processors. Each wakes a hundred times a second; those that are not
    # called for ten seconds end, which is after the pauses of a preparation and soon in a training.
    "RAY_num_workers_soft_limit": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "10000",
    # Nobody takes this machine away from its own Ray with notice.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Nobody reads the measures that its agent takes of the machine every five seconds; MLflow has its own.
    "REPORTER_UPDATE_INTERVAL_MS": "600000",
}
_own = False


@contextlib.contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """A Ray to work with: the one at `address` (or RAY_ADDRESS), or a local one that ends with the block.

    A Ray that this process already joined is used and left alone. Raises: ClusterError when the one at `address`
    cannot be joined.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    handler = signal.getsignal(signal.SIGTERM)
    if address:
        _join(address)
    else:
        # Nothing but this machine's own processes speaks to it, so no token is written to the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        for name, value in OF_OWN_RAY.items():
            os.environ.setdefault(name, value)
        cpus = max(LEAST_CPUS, os.cpu_count() or 1)
        ray.init(
            address="local",
            num_cpus=cpus,
            logging_level=logging.WARNING,
            log_to_driver=False,
            include_dashboard=False,
        )
        _end_log_monitor()
    # `ray.init` puts its own handler in place, which leaves no time to mark the MLflow run as stopped.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    global _own
    _own = not address
    try:
        yield
    finally:
        _own = False
        ray.shutdown()


def _end_log_monitor() -> None:
    """End the process that looks ten times a second for lines that workers wrote, to send them to a driver which does
    not show them."""
    node = ray._private.worker._global_node
    with contextlib.suppress(AttributeError, KeyError):  # of another version of Ray: it then stays
        node.kill_log_monitor(check_alive=False)


def is_own() -> bool:
    """Whether Ray is a local one of this process's, which ends with it."""
    return _own


def end_data_actors() -> None:
    """End what Ray Data leaves running after a preparation, where Ray is this process's own."""
    if _own:
        for name, namespace in OF_RAY_DATA:
            with contextlib.suppress(ValueError):  # it was not started
                actor = ray.get_actor(name, namespace=namespace)
                with contextlib.suppress(RayError):
                    # It answers in turn: Ray tells the user of every call that an actor's end cuts off.
                    ray.get(actor.__ray_ready__.remote(), timeout=ANSWER_WITHIN_SECONDS)
                ray.kill(actor)


def _join(address: str) -> None:
    """Join the cluster at `address`. Raises: ClusterError, within seconds when nothing answers there."""
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"{address}: this is a dashboard, and a process joins a cluster at HEAD:6379; from outside a cluster send "
            f"the job with 'atelier submit … --address {address}'"
        )
    host, colon, port = address.rpartition(":")
    try:
        if colon and "://" not in address:
            # Where nothing answers Ray tries for minutes.
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_WITHIN_SECONDS).close()
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"{address}: the cluster cannot be joined: {reason}; check the address (HEAD:6379, 'auto' on a node), "
            "RAY_AUTH_MODE and the token, and that its Ray is of this version"
        ) from error


def gpus() -> int:
    """GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def node_resources() -> list[dict[str, float]]:
    """What each node of the cluster has, whoever uses it."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free_slots(cpus: int) -> int:
    """How many processes of `cpus` processors each the cluster has room for, node by node.

    A local Ray is told of more processors than the machine has (`LEAST_CPUS`), so that small tasks do not wait; work
    that keeps them busy is counted by those that there are.
    """
    slots = 0
    for node in ray.nodes():
        if node["Alive"]:
            told = int(node["Resources"].get("CPU", 0))
            real = len(os.sched_getaffinity(0)) if node["NodeManagerHostname"] == os.uname().nodename else told
            slots += min(told, real) // cpus
    return slots
