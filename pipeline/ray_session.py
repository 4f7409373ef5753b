"""Starting or joining Ray with settings said explicitly, and leaving it as it was found.  [ray]

Used by the driver of every job.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Health is polled every 2 s by default, and the end of a training is noticed by it.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# Train tells about its V2 and its deprecated environment variables on every start.
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

LEAST_CPUS = 4
"""Logical processors of a local Ray: preparing, training and their small tasks must not wait for each other."""


@contextlib.contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """A Ray to work with: the one at `address` (or RAY_ADDRESS), or a local one that ends with the block.

    A Ray that this process already joined is used and left alone.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    else:
        # Nothing but this machine's own processes speaks to it, so no token is written to the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        cpus = max(LEAST_CPUS, os.cpu_count() or 1)
        ray.init(
            address="local",
            num_cpus=cpus,
            logging_level=logging.WARNING,
            log_to_driver=False,
            include_dashboard=False,
        )
    try:
        yield
    finally:
        ray.shutdown()


def gpus() -> int:
    """GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))
