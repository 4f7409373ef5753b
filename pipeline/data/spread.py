"""Spreading work items over Ray Data's workers.  [ray]

The driver's side is `spread`; a worker imports this module for `Told`, so nothing heavier than Ray may be imported
here: with torch behind it a worker started a second and a half later. Assumes that Ray is initialised.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import ray
import ray.data
from ray.data import TaskPoolStrategy

from pipeline.errors import AtelierError
from pipeline.ray_session import free_slots, is_own

ITEMS = "items"
ANSWERS = "answers"

MOST_BEGUN = 8
"""Workers that are started before it is known how much there is to read; more start with the first stage."""

Item = dict[str, Any]


def begin() -> None:
    """Start, without waiting for it, what stages run on where Ray is this process's own: Ray Data's two actors, and
    workers that import what stages need. The driver has its own imports to make meanwhile."""
    if not is_own():
        return
    importing = ray.remote(num_cpus=1)(import_stages)
    for _ in range(min(free_slots(1), MOST_BEGUN)):
        importing.remote()
    with contextlib.suppress(ImportError):  # of another version of Ray: they then start with the first stage
        from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
        from ray.data._internal.stats import get_or_create_stats_actor

        get_or_create_stats_actor()
        get_or_create_autoscaling_coordinator()
    ray.data.DataContext.get_current()  # the first one imports Ray's state API


def import_stages() -> None:
    import pipeline.data.stages  # noqa: F401


def spread(items: list[Item], stage: Callable[[Item], Item]) -> Iterator[Item]:
    """The stage's answer to each item, as they come, from Ray Data's workers; its own errors as they were raised."""
    if not items:
        return
    processors = free_slots(1)
    rows = [{ITEMS: pickle.dumps(some)} for some in shares(items, processors)]
    # Not `from_arrow`, which sends a task to other workers for the size of each block.
    given = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset = given.map(Told(stage), **options(processors, len(rows)))
    dataset.context.enable_progress_bars = False
    # Answers are small. With a budget for them Ray Data ran one task alone until its own actor had told it how many
    # processors there are: for one to three seconds of each stage.
    dataset.context.op_resource_reservation_enabled = False
    dataset.context.downstream_capacity_backpressure_ratio = None
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    for row in dataset.iter_rows():
        answers = pickle.loads(row[ANSWERS])
        if isinstance(answers, AtelierError):
            raise answers
        yield from answers


def shares(items: list[Item], workers: int) -> Iterator[list[Item]]:
    """The items in order in shares, each of which is one task: half of what is left shared out among the workers, so
    that the last ones are single. Where Ray Data keeps the queue (`options`), a worker waits for it after each task."""
    start = 0
    while start < len(items):
        stop = start + max(1, (len(items) - start) // (2 * max(1, workers)))
        yield items[start:stop]
        start = stop


def options(processors: int, tasks: int) -> dict[str, Any]:
    """Of the map, so that as many tasks run at once as keep all processors busy, where Ray was told of more than there
    are: each of more workers would first import all that the others have imported."""
    told = int(ray.cluster_resources().get("CPU", 0))
    if not 0 < processors < told:
        return {}
    if is_own():
        # The others wait in Ray's own queue: Ray Data, told of a number, sees what has ended ten times a second, and
        # between two tasks a worker waited 0.2 s. Where others share the processors, such tasks might wait for ever.
        return {"num_cpus": told // processors}
    return {"compute": TaskPoolStrategy(min(processors, tasks))}


class Told:
    """A stage whose own errors come back as answers: Ray Data wraps what is raised, and loses it on the way.

    No dataclass: of those Ray Data describes every field to itself, down to the names of all files.
    """

    def __init__(self, stage: Callable[[Item], Item]) -> None:
        self.stage = stage

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        """`ITEMS` → `ANSWERS`, an answer each, or the error of one; both pickled."""
        answers: list[Item] | AtelierError
        try:
            answers = [self.stage(item) for item in pickle.loads(row[ITEMS])]
        except AtelierError as error:
            answers = error
        return {ANSWERS: pickle.dumps(answers)}
