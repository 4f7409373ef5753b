"""Which services a training starts beside its workers."""

from __future__ import annotations

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from pipeline.training.lean_trainer import LeanTorchTrainer

NEEDLESS = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


def callbacks(trainer: TorchTrainer) -> set[str]:
    return {type(callback).__name__ for callback in trainer._create_default_callbacks()}


@pytest.mark.parametrize(("own_ray", "left_out"), [(True, NEEDLESS), (False, {"DatasetsCallback"})])
def test_only_services_without_a_use_are_left_out(own_ray: bool, left_out: set[str]) -> None:
    plain = callbacks(TorchTrainer(print, scaling_config=ScalingConfig(num_workers=1)))
    lean = callbacks(LeanTorchTrainer(print, own_ray=own_ray, scaling_config=ScalingConfig(num_workers=1)))
    assert left_out <= plain, "Ray Train has no such services any more: delete LeanTorchTrainer"
    assert lean == plain - left_out
