"""The parts of a step's time add up to the whole, and waiting for another worker is told from computing."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.training.following import describe
from pipeline.training.in_process import LocalHooks
from pipeline.training.peak_memory import peak_memory_mib
from pipeline.training.session import Session
from pipeline.training.timing import PARTS, STEP_PARTS, DeviceTimer, StepTimer, make_timer, parts_of
from tests.conftest import FAMILIES, cell_spec, prepared_in_memory
from tests.training.two_processes import run_in_others

SLOW_SECONDS = 0.15


def test_every_moment_belongs_to_one_part_and_inner_parts_are_not_counted_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("pipeline.training.timing.time.perf_counter", lambda: now)
    timer = StepTimer()
    now = 1.0
    with timer.part("forward", "model"):
        now = 3.0
        with timer.part("data"):
            now = 7.0
        now = 8.0
    now = 16.0
    assert timer.take() == {**dict.fromkeys(PARTS, 0.0), "other": 9.0, "forward": 3.0, "data": 4.0}
    assert sum(timer.take().values()) == 0.0


def test_a_part_that_raises_ends() -> None:
    timer = StepTimer()
    with pytest.raises(KeyError), timer.part("forward"), timer.part("data"):
        raise KeyError
    assert timer._open == ["other"]


class Event:
    """An event of a device whose clock goes by itself, and which is `behind` with its work."""

    now, behind, made = 0.0, False, 0

    def __init__(self) -> None:
        Event.made += 1

    def record(self, stream: object) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return not Event.behind

    def synchronize(self) -> None:
        Event.behind = False

    def elapsed_time(self, later: Event) -> float:
        assert not Event.behind, "read before it was over"
        return 1000 * (later.at - self.at)


def test_a_device_is_read_at_reports_alone_and_its_events_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: None)
    monkeypatch.setattr("pipeline.training.timing.MOST_PENDING", 50)
    Event.now, Event.made = 0.0, 0
    timer = DeviceTimer(torch.device("cuda"), Event)
    for number in range(1000):
        Event.behind = number % 100 > 60  # it catches up now and then
        Event.now += 1.0
        with timer.part("forward"):
            Event.now += 2.0
    seconds = timer.take()
    assert (seconds["other"], seconds["forward"], sum(seconds.values())) == (1000.0, 2000.0, 3000.0)
    assert Event.made < 200


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_s_work_belongs_to_the_part_that_asked_for_it() -> None:
    timer, x = make_timer(torch.device("cuda")), torch.randn(4096, 4096, device="cuda")
    timer.take()
    with timer.part("forward"):
        for _ in range(20):
            x = x @ x * 1e-2
    with timer.part("recording"):
        time.sleep(0.001)
    seconds = timer.take()
    assert seconds["forward"] > 10 * seconds["recording"] > 0


class Ticking:
    """A clock that goes on by a millisecond whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_add_up_to_the_time_between_reports(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticking()
    for module in ("timing", "loop"):
        names = SimpleNamespace(perf_counter=clock, monotonic=clock)
        monkeypatch.setattr(f"pipeline.training.{module}.time", names)
    spec = cell_spec(family, "image", steps=12, report_every=4, checkpoint_every=4, validate_every=8)
    times: list[float] = []
    reports: list[dict[str, float]] = []

    class Hooks(LocalHooks):
        def report(self, at: object, metrics: dict[str, float]) -> None:
            times.append(clock.now)
            reports.append(metrics)
            clock.now += 1.0

        def checkpoint(self, at: object, stepper: object) -> None:
            clock.now += 2.0

    session = Session(spec, prepared_in_memory(spec))
    began = clock.now
    session.run(Hooks(spec))
    # What is in none of them is the next report's: bringing the metrics of this very one together.
    assert 4 * sum(sum(parts_of(metrics).values()) for metrics in reports) == pytest.approx(times[-1] - began, abs=0.05)
    for metrics in reports:
        parts = parts_of(metrics)
        assert set(parts) == {*PARTS} - {"communication"}  # which one worker has none of
        steps = sum(parts[part] for part in STEP_PARTS if part in parts)
        assert steps == pytest.approx(1 / metrics["train/steps_per_second"], abs=0.01)
        assert min(parts["forward"], parts["backward"], parts["optimiser"], parts["data"]) > 0
    first, second, last = (parts_of(metrics) for metrics in reports)
    assert [round(4 * parts["checkpoint"], 1) for parts in (first, second, last)] == [0.0, 2.0, 2.0]
    assert [round(4 * parts["recording"], 1) for parts in (first, second, last)] == [0.0, 1.0, 1.0]
    assert [parts["validation"] > 0 for parts in (first, second, last)] == [False, True, True]


def test_peak_memory_is_that_of_this_process_and_never_falls() -> None:
    before = peak_memory_mib(torch.device("cpu"))
    block = torch.ones(64 * 2**18)
    after = peak_memory_mib(torch.device("cpu"))
    del block
    assert 50 < before <= after
    assert peak_memory_mib(torch.device("cpu")) > after - 1  # the kernel counts pages in lots


# --- communication ------------------------------------------------------------------------------------------------


class Slow(torch.autograd.Function):
    """The identity, whose gradient takes rank 1 a while."""

    @staticmethod
    def forward(context: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
        if torch.distributed.get_rank() == 1:
            time.sleep(SLOW_SECONDS)
        return gradient


def _time_a_slow_worker(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    module = DistributedDataParallel(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    timer, gradients = StepTimer(), []
    for watched in (False, True, True):
        torch.distributed.barrier()
        timer.take()
        module.zero_grad()
        loss = Slow.apply(module(torch.full((4, 8), rank + 1.0))).square().mean()
        with timer.part("backward"):
            if watched:
                timer.watch(loss)
            loss.backward()
        gradients.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    torch.save({"seconds": timer.take(), "gradients": gradients}, folder / f"{rank}.pt")


def test_waiting_for_a_slower_worker_is_communication_and_changes_no_gradient(tmp_path: Path) -> None:
    run_in_others(_time_a_slow_worker, tmp_path)
    fast, slow = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert fast["seconds"]["communication"] > 0.8 * SLOW_SECONDS > fast["seconds"]["backward"]
    assert slow["seconds"]["backward"] > 0.8 * SLOW_SECONDS > slow["seconds"]["communication"]
    for unwatched, watched in zip(fast["gradients"][0], fast["gradients"][2], strict=True):
        assert torch.equal(unwatched, watched)


# --- what progress says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "said"),
    [("forward", ""), ("data", ""), ("communication", ", most of the time goes to communication (60%)")],
)
def test_progress_names_the_largest_part_where_it_is_none_of_the_networks(largest: str, said: str) -> None:
    metrics = {"train/loss": 2.0, "train/peak_memory_mib": 300.0, "time/backward_seconds": 0.4}
    metrics |= {f"time/{largest}_seconds": 0.6}
    assert describe({"step": 1, "metrics": metrics}, 10, None) == f"loss 2{said}"
