"""When an elastic training changes its number of workers: only after a checkpoint that it was asked for.  [ray]

Runs in Ray Train's controller. Ray's own policy ends the workers wherever they are when the cluster has grown; what
they did since their last checkpoint would be done again. The only place that knows Ray Train's scaling policies.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ScalingDecision

from pipeline.training.asked import ask, held_at, withdraw
from pipeline.training.wishes import Wish

ANSWER_SECONDS = 5
SAVE_SECONDS = 300.0
"""How long the workers may take for the checkpoint; after that they go on as many as they are, until the next look."""

logger = logging.getLogger(__name__)


class ElasticPolicy(ElasticScalingPolicy):
    """As many workers as there is room for; asks the running ones for a checkpoint, after which they stand still,
    before it starts another number of them. Nodes that Ray is about to take away are no room."""

    def __init__(self, scaling_config: ScalingConfig, run_key: str) -> None:
        super().__init__(scaling_config)
        self.run_key = run_key
        self._latest_reserved_resources: Any = None
        self.asked_at: float | None = None

    def on_controller_start_worker_group(self, *, scaling_config: ScalingConfig, num_workers: int) -> None:
        """The workers that stood still, for whatever cause, are ended, and new ones shall not."""
        self._forget()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        if self.asked_at is None:
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if not isinstance(decision, NoopDecision):
                withdraw(self.run_key)  # a step of another cause, a signal or a notice, is no answer
                ask(self.run_key, Wish.HOLD)
                self.asked_at = time.monotonic()
            return NoopDecision()
        if held_at(self.run_key) is not None:
            # The cluster may have changed again meanwhile.
            self._latest_monitor_time = self._latest_reserved_resources_query_time = float("-inf")
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if isinstance(decision, NoopDecision):
                self._forget()
            return decision
        if time.monotonic() - self.asked_at > SAVE_SECONDS:
            logger.warning("%s: no checkpoint in %.0f s; the number of workers stays", self.run_key, SAVE_SECONDS)
            self._forget()
        return NoopDecision()

    def _forget(self) -> None:
        withdraw(self.run_key, Wish.HOLD)
        self.asked_at = None

    def _get_reserved_resources(self) -> Any:
        """Of the cluster as it is now, which the coordinator otherwise looks at every 20 s."""
        now = time.monotonic()
        if now - self._latest_reserved_resources_query_time < self.GET_RESERVED_RESOURCES_INTERVAL_S:
            return self._latest_reserved_resources
        self._latest_reserved_resources_query_time = now
        try:
            asked = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            reserved = ray.get(asked, timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            logger.warning("the cluster's room is not known: %s", error)
            reserved = None
        if reserved is not None:
            leaving = ray._private.state.state.get_draining_nodes()
            reserved = {node: room for node, room in reserved.items() if node not in leaving}
        self._latest_reserved_resources = reserved
        return reserved
