"""A TorchTrainer without the helper processes that a training on a Ray of this process's own has no use for.  [ray]

Ray Train starts an actor for each of its services, and an idle actor is not free: its main thread wakes a hundred
times a second, and on two cores each time stops one of two threads that compute in step. The only place that knows
Ray Train's internal callbacks.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from pipeline.training.elastic import ElasticPolicy
from pipeline.training.failures import WithoutProgress
from pipeline.training.shelf import Shelf


class EndsFailedStarts(WorkerGroupCallback):
    """Ends a group of workers whose start failed after its processes were there, before the next one starts. Ray Train
    forgets it, and its placement group holds what the next one waits for."""

    def __init__(self) -> None:
        self.group: Any = None

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        group, self.group = self.group, None
        if group is not None and group.has_started():  # the controller has ended the one that it knew
            group.shutdown()

    def after_worker_group_start(self, worker_group: Any) -> None:
        self.group = worker_group


class LeanTorchTrainer(TorchTrainer):
    """Without the manager of Ray Data's datasets, of which no training here has any, and where `own_ray` says that the
    cluster ends with this process, without the cleaner of placement groups, which would end with it. An elastic one
    changes its number of workers after checkpoints only. Failures count until there is a new one on the `shelf`."""

    def __init__(self, *args: Any, own_ray: bool, shelf: Shelf, **options: Any) -> None:
        self._shelf = shelf
        self._needless = (DatasetsCallback, PlacementGroupCleanerCallback) if own_ray else (DatasetsCallback,)
        super().__init__(*args, **options)

    def _create_default_callbacks(self) -> list[Any]:
        kept = [one for one in super()._create_default_callbacks() if not isinstance(one, self._needless)]
        return [EndsFailedStarts(), *kept]  # the first, since what fails may be another's

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        options["failure_policy"] = WithoutProgress(options["failure_policy"], self._shelf)
        if self.scaling_config.elasticity_enabled:
            options["scaling_policy"] = ElasticPolicy(self.scaling_config, self.run_config.name)
        return super()._initialize_and_run_controller(**options)
