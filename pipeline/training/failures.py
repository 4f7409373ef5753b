"""Which failures of its workers end a training: more than it may have without a new checkpoint between them.  [ray]

In Ray Train's controller, around its own policy. That counts over the whole run: a training of many hours would end
with the third machine that it loses unannounced, however much it gained between one and the next.
"""

from __future__ import annotations

import copy
import logging
from typing import Any, Protocol

from ray.exceptions import RayError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.errors import StorageError
from pipeline.training.shelf import Shelf

logger = logging.getLogger(__name__)


class Policy(Protocol):
    """What Ray Train asks after a failure: whether to start the workers again."""

    def make_decision(self, training_failed_error: Any) -> Any: ...


class WithoutProgress:
    """Ray Train's own `policy`, whose count begins anew where there is a checkpoint of a later step than at every
    failure before.

    A node that is lost while workers are being started, after their processes and before they train, reaches the
    controller as an error of its own, for which Ray's policy ends the run at once. Here it is a failure as any other.
    """

    def __init__(self, policy: Policy, shelf: Shelf) -> None:
        self.unused, self.policy, self.shelf = policy, copy.deepcopy(policy), shelf
        self.newest = 0

    def make_decision(self, training_failed_error: Any) -> Any:
        newest = self._newest()
        if newest > self.newest:
            self.newest, self.policy = newest, copy.deepcopy(self.unused)
        return self.policy.make_decision(_of_workers(training_failed_error))

    def _newest(self) -> int:
        try:
            return max(self.shelf.steps(), default=0)
        except StorageError as error:
            logger.warning("whether there is a new checkpoint is not known, so the failure counts: %s", error)
            return self.newest


def _of_workers(error: Any) -> Any:
    """The error as the policy should count it: what Ray says of a worker to its controller is the worker's."""
    cause = error.controller_failure if isinstance(error, ControllerError) else None
    return WorkerGroupError(str(error), {0: cause}) if isinstance(cause, RayError) else error
