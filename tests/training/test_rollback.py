"""A training that explodes goes back to its last checkpoint with a smaller learning rate, and can be cut off there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import NonFiniteLossError, TrainingFailedError
from pipeline.spec import RunSpec
from pipeline.training.checkpoint import Position, read_state
from pipeline.training.health import warnings_of
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from tests.conftest import cell_spec, lane_spec, prepared_in_memory
from tests.saved_checkpoints import local_checkpoints
from tests.training.digits import digits_prepared, digits_spec

ROLLBACK = {"rollback": True, "max_rollbacks": 3, "lr_factor": 0.1}


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


class PoisonedAt(Session):
    """A session whose weights are multiplied after one step, while the learning rate is the first one: a rollback mends
    it."""

    def __init__(self, spec: RunSpec, at: int, resume_from: Path | None = None, factor: float = 1e6) -> None:
        super().__init__(spec, prepared_in_memory(spec), resume_from=resume_from)
        stepper, step = self.stepper, self.stepper.step

        def poisoned(number: int, batches: Any, progress: float) -> Any:
            means = step(number, batches, progress)
            if number == at and stepper.course.lr_factor == 1.0:
                with torch.no_grad():
                    for parameter in stepper.model.parameters():
                        parameter.mul_(factor)
            return means

        stepper.step = poisoned  # type: ignore[method-assign]


class KilledAt(LocalHooks):
    """Hooks that end the run at its first report from `step` on, once a rollback was said."""

    def __init__(self, spec: RunSpec, folder: Path, step: int) -> None:
        super().__init__(spec, folder)
        self.step = step

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        super().report(at, metrics)
        if at.step >= self.step and self.warnings:
            raise Killed


def rolling(kind: str = "vae-image", **changes: Any) -> RunSpec:
    settings = {"steps": 24, "report_every": 2, "checkpoint_every": 5, "validate_every": 8, "ema_decay": 0.9}
    settings |= {"health": ROLLBACK, **changes}
    return lane_spec(**settings) if kind == "lanes" else cell_spec(*kind.split("-"), **settings)


def test_a_learning_rate_that_explodes_is_named() -> None:
    spec = digits_spec("rnn", steps=2, lr=3.0, report_every=1)
    hooks = LocalHooks(spec)
    Session(spec, digits_prepared(spec, train=64, validation=20)).run(hooks)
    assert hooks.warnings[0].kind == "exploding_weights"
    assert "over 10 times" in hooks.warnings[0].message


def test_with_rollback_the_same_training_ends_below_where_it_was() -> None:
    spec = digits_spec("vae", steps=100, lr=3.0, report_every=2, checkpoint_every=20, health=ROLLBACK)
    session, hooks = Session(spec, digits_prepared(spec)), LocalHooks(spec)
    before = session.validate(session.stepper, 0.0)[0]["nll_nats"]
    assert session.run(hooks).step == 100
    course = session.stepper.course
    assert hooks.metrics["validation/nll_nats"] < 0.8 * before
    assert 1 <= len(course.rollbacks) <= 3 and course.lr_factor == pytest.approx(0.1 ** len(course.rollbacks))
    assert [warning.kind for warning in hooks.warnings].count("rolled_back") == len(course.rollbacks)
    assert "back to step 0 with 0.1 times the learning rate (rollback 1 of 3)" in hooks.warnings[0].message


@pytest.mark.parametrize("kind", ["vae-image", "gan-image", "lanes"])
@pytest.mark.parametrize("killed_at", [11, 17])
def test_a_run_cut_off_after_it_went_back_ends_as_one_that_was_not(kind: str, killed_at: int, tmp_path: Path) -> None:
    """It explodes in step 13 and goes back to step 10; it is killed before the next checkpoint (15), or after it."""
    spec = rolling(kind)
    whole, hooks = PoisonedAt(spec, 12), LocalHooks(spec)
    whole.run(hooks)
    assert "back to step 10" in next(one for one in hooks.warnings if one.kind == "rolled_back").message

    with pytest.raises(Killed):
        PoisonedAt(spec, 12).run(KilledAt(spec, tmp_path, killed_at))
    last = local_checkpoints(tmp_path)[-1]
    assert read_state(last)["course"]["lr_factor"] == (1.0 if killed_at == 11 else 0.1)
    resumed = PoisonedAt(spec, 12, resume_from=last)
    resumed.run(LocalHooks(spec))

    assert resumed.stepper.course == whole.stepper.course
    expected, seen = (
        session.stepper.state.weights() | {f"average {n}": v for n, v in session.stepper.state.average.items()}
        for session in (whole, resumed)
    )
    for name, value in expected.items():
        assert torch.equal(seen[name], value), f"{name} differs"


def test_the_way_back_is_gone_with_a_smaller_rate_and_the_same_batches() -> None:
    spec = rolling(schedule="constant")
    exploded = PoisonedAt(spec, 12)
    seen: list[tuple[int, float]] = []
    step = exploded.stepper.step

    def noting(number: int, batches: Any, progress: float) -> Any:
        means = step(number, batches, progress)
        seen.append((number, exploded.stepper.optimizers["model"].param_groups[0]["lr"]))
        return means

    exploded.stepper.step = noting  # type: ignore[method-assign]
    exploded.run(LocalHooks(spec))
    steps = [number for number, _ in seen]
    again = steps.index(10, 11)
    assert steps[:again] == list(range(again)) and steps[again:] == list(range(10, 24))
    assert [lr for _, lr in seen] == pytest.approx([1e-3] * again + [1e-4] * 14)


def test_when_rollbacks_are_used_up_the_failure_says_how_often_it_went_back() -> None:
    spec = rolling(health=ROLLBACK | {"max_rollbacks": 2})
    session = Session(spec, prepared_in_memory(spec))
    original = session.batches.batch

    def poisoned(number: int) -> Any:
        batch = original(number)
        batch.x[0] = float("nan")
        return batch

    session.batches.batch = poisoned  # type: ignore[method-assign]
    hooks = LocalHooks(spec)
    with pytest.raises(NonFiniteLossError, match=r"on rows \[.*; went back 2 times"):
        session.run(hooks)
    assert [warning.kind for warning in hooks.warnings] == ["rolled_back"] * 2
    assert {one["kind"]: one["times"] for one in warnings_of(session.stepper.course)} == {
        "non_finite": 2,
        "rolled_back": 2,
    }


def test_what_is_not_to_be_rolled_back_is_only_named() -> None:
    spec = rolling("lanes", health=ROLLBACK | {"rollback_on": ["non_finite"]})
    session, hooks = PoisonedAt(spec, 12, factor=30.0), LocalHooks(spec)
    session.run(hooks)
    assert session.stepper.course.rollbacks == []
    assert "exploding_weights" in [warning.kind for warning in hooks.warnings]


def test_a_training_that_went_back_to_its_beginning_when_its_time_was_up_is_no_model() -> None:
    spec = rolling(steps=10_000, max_seconds=0.2)
    session = Session(spec, prepared_in_memory(spec))

    def late_and_broken(*_: Any) -> Any:
        time.sleep(0.3)
        raise NonFiniteLossError("the loss is nan")

    session.stepper.step = late_and_broken  # type: ignore[method-assign]
    with pytest.raises(TrainingFailedError, match=r"went back to step 0, where it began, and training.max_seconds"):
        session.run(LocalHooks(spec))
