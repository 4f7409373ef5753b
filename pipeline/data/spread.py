"""Spreading work items over Ray Data's workers, a block an item or a few.  [ray]

The driver's side is `spread`; a worker imports this module for `Told`, so nothing heavier than Ray may be imported
here: with torch behind it a worker started a second and a half later. Assumes that Ray is initialised.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.data import TaskPoolStrategy

from pipeline.errors import AtelierError

RAISED = "raised"
MOST_BLOCKS = 4096

Item = dict[str, Any]


def spread(items: list[Item], stage: Callable[[Item], Item]) -> Iterator[Item]:
    """The stage's answer to each item, as they come, from Ray Data's workers; its own errors as they were raised."""
    if not items:
        return
    # A block an item, so that they are shared out one by one; of very many, a few together.
    given = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS))
    dataset = given.map(Told(stage), compute=TaskPoolStrategy(_at_once()))
    dataset.context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    for answer in dataset.iter_rows():
        if RAISED in answer:
            raise pickle.loads(answer[RAISED])
        yield answer


def _at_once() -> int | None:
    """How many tasks keep all processors busy, where Ray was told of more than there are; each of more workers would
    first import all that the others have imported."""
    from pipeline.ray_session import free_slots

    real = free_slots(1)
    return real if 0 < real < int(ray.cluster_resources().get("CPU", 0)) else None


@dataclass
class Told:
    """A stage whose own errors come back as answers: Ray Data wraps what is raised, and loses it on the way."""

    stage: Callable[[Item], Item]

    def __call__(self, item: Item) -> Item:
        try:
            return self.stage(item)
        except AtelierError as error:
            return {RAISED: pickle.dumps(error)}
