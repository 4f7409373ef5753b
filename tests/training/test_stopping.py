"""Early stopping ends a training and keeps its best weights, also when it is cut off; who asks for the best gets it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import PreparedDataError, SpecError
from pipeline.spec import RunSpec
from pipeline.training.checkpoint import Position, load_scoring_weights
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from pipeline.training.steps import Stepper
from pipeline.training.stopping import note_objective, should_stop
from tests.conftest import cell_spec, prepared_in_memory
from tests.saved_checkpoints import local_checkpoints


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


class Noting(LocalHooks):
    """Hooks that keep the objective of every validation, and may end the run at one."""

    def __init__(self, spec: RunSpec, folder: Path | None = None, killed_at: int | None = None) -> None:
        super().__init__(spec, folder)
        self.objectives: dict[int, float] = {}
        self.killed_at = killed_at

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        super().report(at, metrics)
        if "validation/nll_nats" in metrics:
            self.objectives[at.step] = metrics["validation/nll_nats"]
        if at.step == self.killed_at:
            raise Killed


def stopping(**changes: Any) -> RunSpec:
    """A training of random pictures, of which held-out ones are soon unlike those that are learnt."""
    settings = {"steps": 400, "lr": 2e-2, "schedule": "constant", "ema_decay": 0.5, "report_every": 5}
    settings |= {"validate_every": 5, "checkpoint_every": 20, "early_stopping": {"patience": 3}}
    return cell_spec("vae", "image", **settings | changes)


def session_of(spec: RunSpec, resume_from: Path | None = None) -> Session:
    return Session(spec, prepared_in_memory(spec), resume_from=resume_from)


def test_a_training_stops_after_its_patience_with_the_weights_of_its_best_validation(tmp_path: Path) -> None:
    spec = stopping()
    session, hooks = session_of(spec), Noting(spec, tmp_path)
    end = session.run(hooks)
    best = min(hooks.objectives, key=lambda step: hooks.objectives[step])
    assert end.step == best + 15 < 400
    # What is bundled is what a training of as many steps has for scores, bit for bit.
    shorter = session_of(stopping(steps=best, early_stopping=None))
    shorter.run(LocalHooks(spec))
    bundled = session.stepper.state.bundled_weights()
    for name, value in shorter.stepper.state.scoring_weights().items():
        assert torch.equal(bundled[name], value)
        assert torch.equal(load_scoring_weights(local_checkpoints(tmp_path)[-1])[name], value)
    assert any(not torch.equal(bundled[name], value) for name, value in session.stepper.state.scoring_weights().items())


@pytest.mark.parametrize("later", [5, 15])
def test_a_training_cut_off_before_or_at_its_stop_stops_there_too(later: int, tmp_path: Path) -> None:
    spec = stopping()
    whole, hooks = session_of(spec), Noting(spec)
    end = whole.run(hooks)
    with pytest.raises(Killed):
        session_of(spec).run(Noting(spec, tmp_path, end.step - 15 + later))
    resumed = session_of(spec, local_checkpoints(tmp_path)[-1] if local_checkpoints(tmp_path) else None)
    assert resumed.run(LocalHooks(spec)).step == end.step
    assert resumed.stepper.course == whole.stepper.course
    for name, value in whole.stepper.state.bundled_weights().items():
        assert torch.equal(resumed.stepper.state.bundled_weights()[name], value)


def test_a_training_that_stopped_does_nothing_when_resumed(tmp_path: Path) -> None:
    spec = stopping()
    end = session_of(spec).run(LocalHooks(spec, tmp_path))
    again, hooks = session_of(spec, local_checkpoints(tmp_path)[-1]), Noting(spec)
    assert again.run(hooks).step == end.step and hooks.objectives == {}
    more = stopping(early_stopping={"patience": 5})
    assert session_of(more, local_checkpoints(tmp_path)[-1]).run(LocalHooks(more)).step >= end.step + 10


def test_patience_counts_gains_of_more_than_the_least() -> None:
    spec = stopping(early_stopping={"patience": 2, "min_delta": 0.5})
    stepper = session_of(spec).stepper
    course = stepper.course
    for step, (objective, waited) in enumerate([(10.0, 0), (9.7, 1), (9.4, 0), (float("nan"), 1), (9.2, 2)]):
        assert not should_stop(spec.training, course)
        note_objective(spec.training, stepper, step, objective)
        assert course.without_gain == waited
    assert should_stop(spec.training, course)
    # The best is the lowest, by however little.
    assert (course.best_objective, course.best_step) == (9.2, 4)


def test_keep_best_trains_to_the_limit_and_bundles_the_best() -> None:
    spec = stopping(steps=60, keep_best=True, early_stopping=None)
    session, hooks = session_of(spec), Noting(spec)
    assert session.run(hooks).step == 60
    assert session.stepper.course.best_objective == min(hooks.objectives.values()) < hooks.objectives[60]
    scores, _ = session_with(session, session.stepper.state.bundled_weights()).validate(session.stepper, 1.0)
    assert scores["nll_nats"] == session.stepper.course.best_objective


def test_a_checkpoint_from_before_there_were_courses_is_resumed(tmp_path: Path) -> None:
    spec = stopping(steps=20, early_stopping=None)
    session_of(spec).run(LocalHooks(spec, tmp_path))
    (saved,) = local_checkpoints(tmp_path)
    state = json.loads((saved / "state.json").read_text())
    del state["course"], state["sha256"]["best.safetensors"], state["state_sha256"]
    for key in ("health", "early_stopping", "keep_best"):
        del state["spec"]["training"][key]
    (saved / "state.json").write_text(json.dumps(state))
    more = stopping(steps=30)
    assert session_of(more, saved).run(LocalHooks(more)).step > 20
    assert load_scoring_weights(saved).keys() == session_of(spec).stepper.state.scoring_weights().keys()


def session_with(session: Session, weights: dict[str, torch.Tensor]) -> Session:
    session.stepper.model.load_state_dict(weights)
    session.stepper.state.average = {name: weights[name].clone() for name in session.stepper.state.average}
    return session


def test_without_held_out_rows_or_an_objective_it_is_refused() -> None:
    spec = stopping()
    with pytest.raises(PreparedDataError, match=r"early_stopping .* the validation split is empty"):
        Session(spec, prepared_in_memory(spec, validation=0))
    with pytest.raises(SpecError, match=r"early_stopping: .*'gan' is its critic's"):
        cell_spec("gan", "image", early_stopping={"patience": 3})


def test_an_objective_that_is_no_number_is_no_gain_and_the_next_one_is() -> None:
    stepper = session_of(stopping()).stepper
    for step, objective in enumerate((math.nan, math.inf, 5.0, math.nan, 4.0), start=1):
        note_objective(stepper.training, stepper, step, objective)
    assert (stepper.course.best_objective, stepper.course.best_step, stepper.course.without_gain) == (4.0, 5, 0)


@pytest.mark.parametrize("saved_at", [4, 8])
def test_a_training_whose_objectives_are_no_numbers_stops_where_it_would_have_when_resumed(
    saved_at: int, tmp_path: Path
) -> None:
    settings = {"report_every": 2, "validate_every": 2, "checkpoint_every": 4, "keep_checkpoints": 3}
    spec = stopping(steps=40, early_stopping={"patience": 5}, **settings)

    def ends(resume_from: Path | None = None) -> int:
        session = session_of(spec, resume_from)
        validate = session.validate

        def without_a_number(stepper: Stepper, progress: float) -> tuple[dict[str, float], dict[str, float]]:
            scores, signs = validate(stepper, progress)
            return scores | {"nll_nats": math.nan}, signs

        session.validate = without_a_number  # type: ignore[method-assign]
        return session.run(LocalHooks(spec, None if resume_from else tmp_path)).step

    assert ends() == 10
    (saved,) = [path for path in local_checkpoints(tmp_path) if path.name == f"step-{saved_at:08d}"]
    assert ends(saved) == 10


def test_who_no_longer_asks_for_the_best_gets_the_last_and_who_begins_to_gets_the_best_from_then_on(
    tmp_path: Path,
) -> None:
    kept, plain = stopping(steps=20, early_stopping=None, keep_best=True), stopping(steps=20, early_stopping=None)
    session_of(kept).run(LocalHooks(kept, tmp_path / "kept"))
    session_of(plain).run(LocalHooks(plain, tmp_path / "plain"))
    on_without = session_of(plain, local_checkpoints(tmp_path / "kept")[-1]).stepper
    assert on_without.state.best == {}
    begun = session_of(kept, local_checkpoints(tmp_path / "plain")[-1]).stepper
    assert begun.course.best_objective is None
    note_objective(kept.training, begun, 21, 1e9)
    assert begun.state.best
