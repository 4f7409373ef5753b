"""Which services a training starts beside its workers, and by whose policy it starts those again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from pipeline.storage import open_store
from pipeline.training.elastic import ElasticPolicy
from pipeline.training.failures import WithoutProgress
from pipeline.training.lean_trainer import EndsFailedStarts, LeanTorchTrainer
from pipeline.training.shelf import Shelf

NEEDLESS = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


def callbacks(trainer: TorchTrainer) -> set[str]:
    return {type(callback).__name__ for callback in trainer._create_default_callbacks()}


def lean_trainer(folder: Path, own_ray: bool = True, num_workers: Any = 1) -> LeanTorchTrainer:
    shelf = Shelf(open_store(str(folder)), keep=2)
    return LeanTorchTrainer(print, own_ray=own_ray, shelf=shelf, scaling_config=ScalingConfig(num_workers=num_workers))


@pytest.mark.parametrize(("own_ray", "left_out"), [(True, NEEDLESS), (False, {"DatasetsCallback"})])
def test_only_services_without_a_use_are_left_out(own_ray: bool, left_out: set[str], tmp_path: Path) -> None:
    plain = callbacks(TorchTrainer(print, scaling_config=ScalingConfig(num_workers=1)))
    lean = callbacks(lean_trainer(tmp_path, own_ray))
    assert left_out <= plain, "Ray Train has no such services any more: delete LeanTorchTrainer"
    assert lean == plain - left_out | {"EndsFailedStarts"}


def test_a_group_whose_start_failed_is_ended_before_the_next_and_no_other() -> None:
    class Group:
        ended = False

        def has_started(self) -> bool:
            return not self.ended

        def shutdown(self) -> None:
            assert not self.ended
            self.ended = True

    callback = EndsFailedStarts()
    callback.before_worker_group_start(None)
    first, second = Group(), Group()
    callback.after_worker_group_start(first)
    callback.before_worker_group_start(None)
    assert first.ended
    callback.after_worker_group_start(second)
    second.shutdown()  # by the controller
    callback.before_worker_group_start(None)


@pytest.mark.parametrize("num_workers", [1, (1, 2)])
def test_its_controller_gets_the_policies_that_wait_for_checkpoints(
    num_workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, Any] = {}
    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda trainer, **options: got.update(options))
    before = {"scaling_policy": object(), "failure_policy": object()}
    lean_trainer(tmp_path, num_workers=num_workers)._initialize_and_run_controller(**before)
    failures = got["failure_policy"]
    assert isinstance(failures, WithoutProgress) and failures.unused is before["failure_policy"]
    assert isinstance(got["scaling_policy"], ElasticPolicy) or got["scaling_policy"] is before["scaling_policy"]
    assert isinstance(got["scaling_policy"], ElasticPolicy) == (num_workers != 1)
