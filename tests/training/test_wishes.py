"""A training that is asked for a checkpoint saves one after whichever step it is, and nothing else changes by it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from pipeline.spec import RunSpec
from pipeline.storage import open_store
from pipeline.training import wishes
from pipeline.training.checkpoint import Position
from pipeline.training.clock import Clock
from pipeline.training.ending import Trained
from pipeline.training.in_process import LocalHooks, train_in_process
from pipeline.training.session import Session
from pipeline.training.shelf import Shelf
from pipeline.training.termination import Termination
from pipeline.training.wishes import Wish
from tests.conftest import cell_spec, lane_spec, prepared_in_memory
from tests.saved_checkpoints import local_checkpoints
from tests.training.test_device_work import Reads
from tests.training.two_processes import run_in_others

CASES = ["vae-image", "gan-audio", "rnn-carried"]
OF_THE_CLOCK = ("second", "share", "time", "memory", "utilisation", "flop")
"""Words in the names of metrics that two equal trainings do not have alike."""


class Asking(LocalHooks):
    """Hooks that hear `wish` after the steps `at`, counted from the first, and keep what was reported."""

    def __init__(self, spec: RunSpec, folder: Path | None, wish: Wish, at: set[int]) -> None:
        super().__init__(spec, folder)
        self.wish, self.wished_at = wish, at
        self.heard, self.obeyed_at = 0, list[int]()
        self.reports: dict[int, dict[str, float]] = {}

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        self.reports[at.step] = {k: v for k, v in metrics.items() if not any(word in k for word in OF_THE_CLOCK)}

    def hear(self) -> Wish:
        self.heard += 1
        return self.wish if self.heard in self.wished_at else Wish.NONE

    def obeyed(self, wish: Wish, at: Position) -> None:
        self.obeyed_at.append(at.step)


def spec_of(case: str, **settings: Any) -> RunSpec:
    settings = {"steps": 12, "report_every": 4, "checkpoint_every": 8, "validate_every": 8, "ema_decay": 0.9} | settings
    return lane_spec(**settings) if case == "rnn-carried" else cell_spec(*case.split("-"), **settings)


def session_of(spec: RunSpec, resume_from: Path | None = None, **place: int) -> Session:
    return Session(spec, prepared_in_memory(spec), resume_from=resume_from, **place)  # type: ignore[arg-type]


def assert_same(one: Session, other: Session) -> None:
    assert one.stepper.course == other.stepper.course
    for name, value in one.stepper.state.scoring_weights().items():
        assert torch.equal(other.stepper.state.scoring_weights()[name], value), name


@pytest.mark.parametrize("case", CASES)
def test_a_training_ended_after_any_step_goes_on_as_one_that_was_not(case: str, tmp_path: Path) -> None:
    spec = spec_of(case)
    whole, undisturbed = session_of(spec), Asking(spec, None, Wish.NONE, set())
    whole.run(undisturbed)
    for step in (3, 4, 6):
        folder = tmp_path / str(step)
        first = Asking(spec, folder, Wish.END, {step})
        assert session_of(spec).run(first).step == step
        assert [path.name for path in local_checkpoints(folder)] == [f"step-{step:08d}"]
        second = Asking(spec, None, Wish.NONE, set())
        resumed = session_of(spec, local_checkpoints(folder)[-1])
        assert resumed.run(second).step == 12
        assert_same(whole, resumed)
        # The mean of a report that was half done is that of all its steps.
        assert first.reports | second.reports == undisturbed.reports


@pytest.mark.parametrize("wish", [Wish.SAVE, Wish.HOLD])
def test_a_training_that_saves_and_goes_on_is_not_changed_by_it(wish: Wish, tmp_path: Path) -> None:
    spec = spec_of("vae-image", keep_checkpoints=20)
    whole, undisturbed = session_of(spec), Asking(spec, None, Wish.NONE, set())
    whole.run(undisturbed)
    asked, hooks = session_of(spec), Asking(spec, tmp_path, wish, set(range(1, 13)))
    asked.run(hooks)
    # At the end there is nothing to obey any more: it is saved as ever.
    assert hooks.obeyed_at == list(range(1, 12))
    assert len(local_checkpoints(tmp_path)) == 12
    assert hooks.reports == undisturbed.reports
    assert_same(whole, asked)


def test_sigterm_ends_a_training_of_this_process_with_a_checkpoint(tmp_path: Path) -> None:
    spec = spec_of("vae-image", steps=200)
    before = signal.getsignal(signal.SIGTERM)

    def stop(at: Position, metrics: dict[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with Termination() as termination:
        hooks = LocalHooks(spec, tmp_path, on_report=stop, termination=termination)
        end = session_of(spec).run(hooks)
    assert end.step == 5
    assert [path.name for path in local_checkpoints(tmp_path)] == ["step-00000005"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_command_that_sigterm_stopped_leaves_with_143_and_goes_on_when_it_is_given_again(tmp_path: Path) -> None:
    spec = spec_of("vae-image", steps=60, num_workers=0)
    said: list[tuple[str, int, int | None, str]] = []

    def progress(stage: str, done: int, total: int | None, note: str) -> None:
        if not said and done:
            os.kill(os.getpid(), signal.SIGTERM)
        said.append((stage, done, total, note))

    def train() -> Trained:
        arguments = (prepared_in_memory(spec), open_store(str(tmp_path)), "run", None, None, progress)
        return train_in_process(spec, *arguments)  # type: ignore[arg-type]

    with pytest.raises(SystemExit) as left:
        train()
    assert left.value.code == 143
    assert said[-1] == ("stopped", 5, 60, "a checkpoint of step 5 is saved; the same command goes on from it")
    trained = train()
    whole = session_of(spec)
    whole.run(LocalHooks(spec))
    assert trained.step == 60
    assert [done for stage, done, *_ in said if stage == "train"] == list(range(4, 61, 4))
    for name, value in whole.stepper.state.scoring_weights().items():
        assert torch.equal(trained.weights[name], value), name


@pytest.fixture
def left_by_itself() -> Iterator[None]:
    """As a command has it before it trains: SIGTERM leaves at once, here with 99."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(99))
    yield
    signal.signal(signal.SIGTERM, before)


def stopped_at_its_first_report(spec: RunSpec, folder: Path) -> tuple[object, list[str]]:
    """The exit code of a training in this process that gets SIGTERM then, and the stages that it told."""
    said: list[str] = []

    def progress(stage: str, done: int, total: int | None, note: str) -> None:
        said.append(stage)
        if said == ["train"]:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as left:
        train_in_process(spec, prepared_in_memory(spec), open_store(str(folder)), "run", None, None, progress)
    return left.value.code, said


def test_without_stop_seconds_sigterm_ends_a_training_in_this_process_at_once(
    left_by_itself: None, tmp_path: Path
) -> None:
    spec = spec_of("vae-image", steps=60, num_workers=0, stop_seconds=0)
    assert stopped_at_its_first_report(spec, tmp_path) == (99, ["train"])
    assert local_checkpoints(tmp_path / "training" / "run") == []


def test_a_training_in_this_process_whose_checkpoint_takes_longer_than_stop_seconds_is_ended(
    left_by_itself: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(Shelf, "put", lambda *_: answered.wait(30))
    spec = spec_of("vae-image", steps=60, num_workers=0, stop_seconds=0.5)
    try:
        assert stopped_at_its_first_report(spec, tmp_path) == (99, ["train"])
    finally:
        answered.set()


def test_the_second_sigterm_does_what_the_first_did_before() -> None:
    before, came = signal.getsignal(signal.SIGTERM), list[int]()
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with Termination() as termination:
            os.kill(os.getpid(), signal.SIGTERM)
            assert termination.asked.is_set() and came == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


# --- two workers ----------------------------------------------------------------------------------------------


def _train_two(rank: int, folder: Path) -> None:
    """Rank 1 alone hears that it is to end, after its third step; then both go on."""
    spec = spec_of("rnn-carried", steps=400)
    asked = Asking(spec, folder / f"rank-{rank}", Wish.END, {3} if rank == 1 else set())
    end = session_of(spec, rank=rank, world_size=2).run(asked)
    saved = local_checkpoints(folder / "rank-0")[-1] if rank == 0 else None
    (folder / f"ended-{rank}").write_text(str(end.step))
    dist.barrier()
    saved = saved or local_checkpoints(folder / "rank-0")[-1]
    resumed = session_of(spec, saved, rank=rank, world_size=2)
    assert resumed.start.step == end.step
    resumed.run(LocalHooks(spec))
    if rank == 0:
        weights = {name: value.contiguous() for name, value in resumed.stepper.state.scoring_weights().items()}
        save_file(weights, folder / "two.safetensors")


def test_two_workers_end_after_the_same_step_when_one_of_them_is_asked(tmp_path: Path) -> None:
    run_in_others(_train_two, tmp_path)
    ended = {int((tmp_path / f"ended-{rank}").read_text()) for rank in (0, 1)}
    assert len(ended) == 1 and 3 < ended.pop() < 400
    spec = spec_of("rnn-carried", steps=400)
    alone = session_of(spec)
    alone.run(LocalHooks(spec))
    two = load_file(tmp_path / "two.safetensors")
    for name, value in alone.stepper.state.scoring_weights().items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)


def _train_by_the_clock(rank: int, folder: Path) -> None:
    """The clock of rank 0 goes a second at every look, and that of rank 1 is far ahead. Both leave the progress that
    each step was taken at, rank 0 also what its clock said, and where numbers were read from tensors of the device."""
    said: list[float] = []

    def own(self: Clock) -> float:
        said.append(len(said) + 1.0 if rank == 0 else 1e9)
        return said[-1]

    Clock.own, wishes.LOOK_SECONDS = own, 0.0  # type: ignore[method-assign]
    at_the_end = dict.fromkeys(("steps", "report_every", "validate_every", "checkpoint_every"), 1000)
    spec = spec_of("vae-image", max_seconds=200, **at_the_end)
    session = session_of(spec, rank=rank, world_size=2)
    stepper = session.stepper
    stepper.guard.on_device = True  # as on a GPU, where it looks when a report comes
    seen: list[float] = []
    read: list[list[str]] = []
    step = stepper.step

    def noting(number: int, batches: Any, progress: float) -> Any:
        seen.append(200 * progress)
        read.append(list(reads.places))
        return step(number, batches, progress)

    stepper.step = noting  # type: ignore[method-assign]
    with Reads() as reads:
        session.run(LocalHooks(spec))
    torch.save({"seen": seen, "said": said, "read": read[-1][len(read[0]) :]}, folder / f"{rank}.pt")


def test_two_workers_go_by_the_seconds_of_the_first_and_read_no_number_from_the_device_for_it(tmp_path: Path) -> None:
    run_in_others(_train_by_the_clock, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["seen"] == second["seen"]
    by_time = first["seen"][2:]  # before two steps are taken nothing has come
    assert by_time == sorted(by_time) and len(set(by_time)) > 10
    assert {round(seconds) for seconds in by_time} < {round(seconds) for seconds in first["said"]}
    assert first["read"] == second["read"] == []
