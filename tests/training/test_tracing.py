"""A trace of some steps is valid, has the named parts of a step within its steps, and changes no weight."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.spec import RunSpec
from pipeline.storage import open_store
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from pipeline.training.tracing import keep_trace
from tests.conftest import cell_spec, prepared_in_memory
from tests.saved_checkpoints import local_checkpoints


def _traced(spec: RunSpec, out: Path, resume_from: Path | None = None, folder: Path | None = None) -> Session:
    session = Session(spec, prepared_in_memory(spec), resume_from=resume_from)
    session.run(LocalHooks(spec, folder, on_trace=lambda traced: shutil.copytree(traced, out, dirs_exist_ok=True)))
    return session


def _events(path: Path) -> list[dict[str, Any]]:
    """The complete events of a Chrome trace, checked against its documented fields."""
    with gzip.open(path, "rt") as file:
        trace = json.load(file)
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    for event in events:
        assert isinstance(event["name"], str) and event["dur"] >= 0 and event["ts"] >= 0
        assert isinstance(event["pid"], int | str) and isinstance(event["tid"], int | str)
    return events


def _within(events: list[dict[str, Any]], outer: dict[str, Any]) -> set[str]:
    """Names of what lies in the time of an event, in its thread."""
    end = outer["ts"] + outer["dur"]
    same = [event for event in events if event["tid"] == outer["tid"] and event["pid"] == outer["pid"]]
    return {event["name"] for event in same if outer["ts"] <= event["ts"] and event["ts"] + event["dur"] <= end}


def test_a_trace_has_the_parts_of_each_phase_within_its_steps_and_operators_within_the_parts(tmp_path: Path) -> None:
    spec = cell_spec("gan", "image", steps=9, profile={"wait": 1, "steps": 3}, ema_decay=0.9)
    _traced(spec, tmp_path)
    (trace,) = tmp_path.glob("*.json.gz")
    assert trace.name == "step-00000003-rank-0.json.gz"
    events = _events(trace)
    steps = [event for event in events if event["name"].startswith("ProfilerStep#")]
    assert len(steps) == 3
    for step in steps:
        parts = {
            f"{phase} {part}" for phase in ("critic", "generator") for part in ("forward", "backward", "optimiser")
        }
        assert _within(events, step) >= parts | {"data", "optimiser", "module critic", "module generator"}
    forward = next(event for event in events if event["name"] == "generator forward")
    assert {"module generator", "module critic", "aten::addmm"} <= _within(events, forward)
    (table,) = tmp_path.glob("*-operators.txt")
    assert "aten::convolution" in table.read_text() or "aten::mkldnn_convolution" in table.read_text()


def test_a_training_that_is_traced_ends_with_the_same_weights(tmp_path: Path) -> None:
    traced = _traced(cell_spec("vae", "image", steps=9, profile=True), tmp_path)
    plain = Session(cell_spec("vae", "image", steps=9), prepared_in_memory(traced.spec))
    plain.run(LocalHooks(plain.spec))
    for name, value in plain.stepper.state.weights().items():
        assert torch.equal(value, traced.stepper.state.weights()[name])
    assert not traced.stepper.timer.tracing
    assert not any(module._forward_hooks for module in traced.stepper.model.modules())


@pytest.mark.parametrize(("steps", "first", "count"), [(30, 22, 5), (9, 4, 5), (4, 2, 2), (1, None, 0)])
def test_a_short_training_waits_less_and_records_what_there_is(
    steps: int, first: int | None, count: int, tmp_path: Path
) -> None:
    _traced(cell_spec("vae", "image", steps=steps, profile=True), tmp_path)
    traces = list(tmp_path.glob("*.json.gz"))
    if first is None:
        assert traces == []
        return
    assert [trace.name for trace in traces] == [f"step-{first:08d}-rank-0.json.gz"]
    assert len([e for e in _events(traces[0]) if e["name"].startswith("ProfilerStep#")]) == count


def test_a_resumed_run_is_traced_again_and_may_begin_to_be(tmp_path: Path) -> None:
    _traced(cell_spec("vae", "image", steps=6), tmp_path / "none", folder=tmp_path / "checkpoints")
    assert not (tmp_path / "none").exists()
    spec = cell_spec("vae", "image", steps=12, profile={"wait": 0, "steps": 2})
    _traced(spec, tmp_path / "out", resume_from=local_checkpoints(tmp_path / "checkpoints")[-1])
    assert [path.name for path in (tmp_path / "out").glob("*.gz")] == ["step-00000008-rank-0.json.gz"]


def test_a_training_that_fails_ends_its_trace(tmp_path: Path) -> None:
    spec = cell_spec("vae", "image", steps=9, profile={"wait": 0, "steps": 5})
    session = Session(spec, prepared_in_memory(spec))
    original = session.batches.batch

    def failing(number: int) -> Any:
        if number == 4:
            raise RuntimeError("planted")
        return original(number)

    session.batches.batch = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="planted"):
        session.run(LocalHooks(spec, on_trace=lambda traced: shutil.copytree(traced, tmp_path / "cut")))
    _traced(spec, tmp_path / "next")  # a profiler that had been left on would refuse
    assert len(list(tmp_path.glob("*/*.json.gz"))) == 2


def test_a_trace_lies_in_the_folder_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "step-1.json.gz").write_bytes(b"x")
    store = open_store(str(tmp_path / "storage"))
    keep_trace(tmp_path / "made", store, "a-run-1", None)
    assert store.read_bytes("runs", "a-run-1", "profile", "step-1.json.gz") == b"x"
