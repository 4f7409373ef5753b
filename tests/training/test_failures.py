"""Which failures end a training, by Ray Train's own policy and the checkpoints that there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray.cloudpickle
from pydantic import ValidationError
from ray.exceptions import ActorDiedError
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision, create_failure_policy
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.errors import StorageError
from pipeline.spec import TrainingSpec
from pipeline.storage import open_store
from pipeline.training.failures import WithoutProgress
from pipeline.training.shelf import Shelf


class Run:
    """A run's folder, and the policy of its controller, to which it was sent from the driver."""

    def __init__(self, folder: Path, max_failures: int) -> None:
        self.folder = folder
        policy = create_failure_policy(FailureConfig(max_failures=max_failures))
        sent = WithoutProgress(policy, Shelf(open_store(str(folder)), keep=2))
        self.policy: WithoutProgress = ray.cloudpickle.loads(ray.cloudpickle.dumps(sent))

    def saves(self, step: int) -> None:
        (self.folder / f"step-{step:08d}").mkdir()

    def goes_on_after_a_failure(self) -> bool:
        decision = self.policy.make_decision(WorkerGroupError("a worker died", {0: RuntimeError("it died")}))
        return bool(decision is FailureDecision.RETRY)


def test_failures_between_which_there_were_new_checkpoints_do_not_end_a_training(tmp_path: Path) -> None:
    run = Run(tmp_path, max_failures=1)
    for step in range(100, 2000, 100):
        run.saves(step)
        assert run.goes_on_after_a_failure()


@pytest.mark.parametrize("saved", [(), (100,), (100, 200)])
def test_one_failure_more_than_it_may_have_ends_a_training_that_gains_nothing(
    saved: tuple[int, ...], tmp_path: Path
) -> None:
    run = Run(tmp_path, max_failures=2)
    for step in saved:
        run.saves(step)
        assert run.goes_on_after_a_failure()
    left = 1 if saved else 2
    assert [run.goes_on_after_a_failure() for _ in range(left + 1)] == [True] * left + [False]


def test_a_checkpoint_of_an_earlier_step_than_the_last_is_no_progress(tmp_path: Path) -> None:
    run = Run(tmp_path, max_failures=1)
    run.saves(300)
    assert run.goes_on_after_a_failure()
    (tmp_path / "step-00000300").rmdir()  # it was damaged, and a run goes on from the one before
    run.saves(250)
    assert not run.goes_on_after_a_failure()


@pytest.mark.parametrize(("max_failures", "goes_on"), [(0, False), (-1, True)])
def test_none_is_none_and_any_number_is_any(max_failures: int, goes_on: bool, tmp_path: Path) -> None:
    assert TrainingSpec(max_failures=max_failures).max_failures == max_failures
    run = Run(tmp_path, max_failures)
    run.saves(100)
    assert [run.goes_on_after_a_failure() for _ in range(10)] == [goes_on] * 10


def test_fewer_than_any_number_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="max_failures"):
        TrainingSpec(max_failures=-2)


def test_a_storage_that_does_not_answer_counts_as_no_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(shelf: Shelf) -> list[int]:
        raise StorageError("it does not answer")

    run = Run(tmp_path, max_failures=1)
    run.saves(100)
    assert run.goes_on_after_a_failure()
    run.saves(200)
    monkeypatch.setattr(Shelf, "steps", fail)
    assert not run.goes_on_after_a_failure()


def test_a_node_lost_while_workers_start_is_a_failure_and_a_defect_of_the_controller_ends_the_run(
    tmp_path: Path,
) -> None:
    policy = create_failure_policy(FailureConfig(max_failures=2))
    lost, defect = ControllerError(ActorDiedError()), ControllerError(ValueError("a defect"))
    assert policy.make_decision(lost) is FailureDecision.RAISE, "Ray mends it itself: ours is not needed any more"
    run = Run(tmp_path, max_failures=2)
    retried, ended = FailureDecision.RETRY, FailureDecision.RAISE
    assert [run.policy.make_decision(lost) for _ in range(3)] == [retried, retried, ended]
    run.saves(100)
    assert run.policy.make_decision(lost) is retried
    assert run.policy.make_decision(defect) is ended
