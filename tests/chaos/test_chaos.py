"""A training that is killed at random moments ends as one that was not; `make soak` kills longer, and all families."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.benchmarks import soak as soaking
from tests.benchmarks.soak import shared_out
from tests.chaos.cases import STEPS
from tests.chaos.evidence import differing_weights, history_faults
from tests.chaos.kills import VICTIMS, chance_of, draw_kills
from tests.chaos.ordeal import ChaosError, Ordeal
from tests.chaos.trial import Trial
from tests.integration.ray_nodes import RayNodes

CASE, SEED = "image_vae", 9
"""Three kills in the midst of steps, one of each kind."""


@pytest.mark.ray
def test_a_training_that_is_killed_three_times_ends_as_if_it_had_not_been(nodes: RayNodes, tmp_path: Path) -> None:
    told = Trial(CASE, tmp_path).run(nodes, SEED, len(VICTIMS))
    assert len(told["kills"]) == len(VICTIMS), told["missed"]
    assert told["faults"] == []


def test_kills_of_a_seed_are_the_same_and_come_in_the_order_of_their_steps() -> None:
    for seed in range(50):
        kills = draw_kills(random.Random(seed), 7, steps=400)
        assert kills == draw_kills(random.Random(seed), 7, steps=400)
        steps = [kill.at_step for kill in kills if kill.at_step is not None]
        assert steps == sorted(steps)
        assert kills[0].at_step is not None, "there is no launch to kill before the first"
        assert all(kill.victim == "driver" for kill in kills if kill.at_step == 400)


def test_every_victim_comes_up_among_three_kills_of_the_quick_test() -> None:
    kills = draw_kills(chance_of(SEED, CASE), len(VICTIMS), STEPS)
    assert {kill.victim for kill in kills} == set(VICTIMS)
    assert all(kill.at_step is not None and kill.at_step < STEPS for kill in kills)


def test_kills_are_shared_out_whole() -> None:
    assert shared_out(20, 3) == [7, 7, 6]


def test_a_step_twice_a_step_too_few_and_another_value_are_faults() -> None:
    undisturbed = {"train/loss": [(10, 1.0), (20, 0.5)], "validation/nll": [(20, 3.0)], "system/cpu": [(3, 1.0)]}
    assert history_faults(undisturbed, undisturbed) == []
    twice = {**undisturbed, "train/loss": [(10, 1.0), (20, 0.5), (20, 0.5)]}
    assert history_faults(twice, undisturbed) == ["train/loss: 1 steps are there more than once, the first 20"]
    gone = {**undisturbed, "train/loss": [(20, 0.5)], "system/cpu": [(9, 0.0)]}
    assert history_faults(gone, undisturbed) == ["train/loss: missing [10], too many []"]
    other = {**undisturbed, "validation/nll": [(20, 3.5)]}
    assert history_faults(other, undisturbed) == ["validation/nll: 3.5 at step 20, undisturbed 3.0"]


def test_a_case_that_did_not_come_through_goes_on_in_another_storage_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began: list[Path] = []

    class BreaksAtFirst:
        def __init__(self, case: str, storage: Path, workers: int) -> None:
            self.case, self.storage = case, storage

        def run(self, *_: Any) -> dict[str, Any]:
            assert self.storage.is_dir()
            began.append(self.storage)
            if len(began) == 1:
                raise ChaosError("a driver left with 1")
            return {"kills": ["of a worker"], "faults": []}

    clock = iter([0.0, 0.0, 30.0, 60.0, 60.0])
    monkeypatch.setattr(soaking, "Trial", BreaksAtFirst)
    monkeypatch.setattr(soaking, "RayNodes", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(soaking, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    told = soaking.soak([CASE], 1, SEED, 1.0, 1, print)
    assert told == {"seed": SEED, "rounds": 3, "kills": 2, "faults": 1, "minutes": 1.0}
    assert began[0] != began[1] == began[2]


def test_kills_for_which_a_run_was_too_short_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class SuffersTwoAtMost:
        def __init__(self, case: str, storage: Path, workers: int) -> None:
            self.case = case

        def run(self, nodes: Any, seed: int, count: int, say: Any) -> dict[str, Any]:
            asked.append(count)
            return {"kills": ["of a worker"] * min(count, 2), "faults": []}

    monkeypatch.setattr(soaking, "Trial", SuffersTwoAtMost)
    monkeypatch.setattr(soaking, "RayNodes", lambda **_: contextlib.nullcontext())
    told = soaking.soak([CASE, "another"], 7, SEED, 0.0, 1, print)
    assert (told["rounds"], told["kills"], told["faults"]) == (2, 7, 0) and asked == [4, 3, 2, 1]
    monkeypatch.setattr(SuffersTwoAtMost, "run", lambda *_: {"kills": [], "faults": []})
    assert soaking.soak([CASE], 7, SEED, 0.0, 1, print)["faults"] == 1  # and not for ever


@pytest.mark.parametrize("answer", ["", '{"run_id": "of-the-round-before"}'])
def test_a_driver_that_made_no_run_of_its_own_did_not_come_through(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(ordeal: Ordeal) -> None:
        ordeal.log.touch()
        ordeal.answers = ordeal.log.with_suffix(".json")
        ordeal.answers.write_text(answer)
        ordeal.driver = subprocess.Popen([sys.executable, "-c", ""])

    before = tmp_path / "runs" / "of-the-round-before"
    before.mkdir(parents=True)
    (before / "run.json").touch()
    monkeypatch.setattr(Ordeal, "_start", start)
    with pytest.raises(ChaosError, match="answered nothing" if not answer else "made no run of their own"):
        Ordeal(CASE, tmp_path, 1, cast(RayNodes, None)).go()


def test_a_run_without_a_checkpoint_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "training" / "undisturbed" / "step-00000400").mkdir(parents=True)
    assert differing_weights(tmp_path, "killed", "undisturbed") == ["no checkpoint is left of killed"]
