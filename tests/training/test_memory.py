"""A step that does not fit into memory says how many examples at once would, or goes on with that many."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import OutOfMemoryError
from pipeline.models.base import Batch
from pipeline.spec import RunSpec
from pipeline.training.accumulation import cut
from pipeline.training.following import describe
from pipeline.training.in_process import LocalHooks
from pipeline.training.memory import LASTING, _available, bytes_to_come, is_out_of_memory
from pipeline.training.session import Session
from tests.conftest import cell_spec, prepared_in_memory

LIMITED = "tests.training.limited_training"


class Tight(Session):
    """A session on a machine on which a pass of more than `most` examples fails, from step `after` on."""

    def __init__(self, spec: RunSpec, most: int, after: int = 0) -> None:
        super().__init__(spec, prepared_in_memory(spec))
        self.passes: list[int] = []
        model, step = self.stepper.model, self.stepper.step
        forward, now = model.forward, [0]

        def tight(batch: Batch | None, phase: str, context: Any) -> Any:
            self.passes.append(context.batch_size)
            if now[0] >= after and context.batch_size > most:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            return forward(batch, phase, context)

        def noting(number: int, batches: Any, progress: float) -> Any:
            now[0] = number
            return step(number, batches, progress)

        model.forward, self.stepper.step = tight, noting  # type: ignore[method-assign]


def weights_of(session: Session) -> dict[str, torch.Tensor]:
    session.run(LocalHooks(session.spec))
    return session.stepper.state.weights()


def test_without_auto_the_failure_names_phase_step_and_what_fits_and_nothing_is_stepped() -> None:
    spec = cell_spec("gan", "image")
    session = Tight(spec, most=3)
    before = {name: value.clone() for name, value in session.stepper.state.weights().items()}
    with pytest.raises(OutOfMemoryError, match=r"phase 'critic' at step 0 \(rank 0\): 8 examples at once") as failure:
        session.run(LocalHooks(spec))
    assert "2 at once fit: set training.micro_batch to 2, or to auto" in str(failure.value)
    assert all(torch.equal(value, before[name]) for name, value in session.stepper.state.weights().items())


@pytest.mark.parametrize("family", ["rnn", "vae", "gan"])
@pytest.mark.parametrize("after", [0, 3])
def test_auto_trains_the_same_model_with_what_fits(family: str, after: int) -> None:
    """Found before the first step, or when a later one does not fit any more."""
    settings = {"optimizer": "sgd", "momentum": 0.9, "ema_decay": 0.9, "report_every": 1}
    expected = weights_of(Tight(cell_spec(family, "image", **settings), most=8))
    spec = cell_spec(family, "image", micro_batch="auto", **settings)
    session, hooks = Tight(spec, most=3, after=after), LocalHooks(spec)
    session.run(hooks)
    assert session.stepper.micro_batch.size == 2 and max(session.passes[-4:]) == 2
    assert hooks.metrics["train/micro_batch"] == 2
    assert ("out_of_memory" in [warning.kind for warning in hooks.warnings]) == (after > 0)
    for name, value in expected.items():
        torch.testing.assert_close(session.stepper.state.weights()[name], value, rtol=0, atol=1e-5)


def test_where_not_one_example_fits_it_says_so() -> None:
    with pytest.raises(OutOfMemoryError, match="not even one example at once fits: take a smaller model"):
        weights_of(Tight(cell_spec("vae", "image", micro_batch="auto"), most=0))


def test_a_larger_setting_than_a_workers_share_is_all_of_it_bit_for_bit() -> None:
    plain, larger = (cell_spec("vae", "image", micro_batch=size) for size in (None, 100))
    expected = weights_of(Tight(plain, most=8))
    for name, value in weights_of(Tight(larger, most=8)).items():
        assert torch.equal(value, expected[name])


def test_parts_are_as_few_and_as_equal_as_can_be() -> None:
    assert [part.tolist() for part in cut(8, 3, torch.device("cpu"))] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert [len(part) for part in cut(128, 48, torch.device("cpu"))] == [43, 43, 42]


def test_a_try_that_fails_for_good_in_its_thread_does_not_hinder_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As oneDNN does where there was no memory for its code; in the thread that trains, it can only be said."""
    failed = threading.local()

    def of_this_thread(session: Session) -> None:
        forward = session.stepper.model.forward

        def broken(batch: Batch | None, phase: str, context: Any) -> Any:
            if context.batch_size > 3 or hasattr(failed, "once"):
                failed.once = True
                raise RuntimeError(LASTING)
            return forward(batch, phase, context)

        session.stepper.model.forward = broken  # type: ignore[method-assign]

    spec = cell_spec("vae", "image", micro_batch="auto")
    session = Session(spec, prepared_in_memory(spec))
    of_this_thread(session)
    session.run(LocalHooks(spec))
    assert session.stepper.micro_batch.size == 2 and not hasattr(failed, "once")
    session = Session(spec, prepared_in_memory(spec))
    monkeypatch.setattr(session.stepper, "find_micro_batch", lambda *_: of_this_thread(session))
    with pytest.raises(OutOfMemoryError, match=r"2 at once fit: set training\.micro_batch to 2"):
        session.run(LocalHooks(spec))


def test_other_failures_are_not_taken_for_a_want_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize(
    ("settings", "copies"),
    [({"optimizer": "adamw"}, 2), ({"optimizer": "sgd"}, 0), ({"optimizer": "rmsprop", "momentum": 0.9}, 2)],
)
def test_what_optimizers_will_keep_is_counted_before_they_keep_it(settings: dict[str, Any], copies: int) -> None:
    spec = cell_spec("vae", "image", **settings)
    session = Session(spec, prepared_in_memory(spec))
    optimizers = session.stepper.optimizers.values()
    weights = sum(parameter.nbytes for parameter in session.stepper.model.parameters())
    assert bytes_to_come(optimizers, []) == copies * weights
    session.run(LocalHooks(spec))
    kept = session.stepper.state.optimizer_tensors().items()
    assert sum(value.nbytes for name, value in kept if not name.endswith("step")) == copies * weights
    if copies:
        assert bytes_to_come(optimizers, []) == 0


@pytest.mark.parametrize(
    ("limit", "usage", "stat"),
    [
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ],
)
def test_a_container_full_of_cached_files_has_the_memory_that_they_give_up(
    tmp_path: Path, limit: str, usage: str, stat: str
) -> None:
    """A group that wrote more files than it may have memory is at its limit, and most of it is free."""
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("100000000\n")
    (tmp_path / usage).write_text("99990000\n")
    (tmp_path / stat).write_text("anon 20000000\nactive_file 30000000\ninactive_file 40000000\n")
    assert _available(tmp_path) == 70_010_000
    (tmp_path / limit).write_text("max\n")
    assert _available(tmp_path) == pytest.approx(_available(tmp_path / "nowhere"), rel=0.2)


def test_progress_says_how_many_go_through_at_once() -> None:
    assert describe({"step": 1, "metrics": {"train/micro_batch": 64.0}}, 10, None) == "64 at once"


def limited(micro_batch: str, megabytes: int) -> subprocess.CompletedProcess[str]:
    """A real training in a process that may not have more memory than that beyond what it has when it begins."""
    command = [sys.executable, "-m", LIMITED, micro_batch, str(megabytes)]
    root = Path(__file__).parents[2]
    # The limit counts addresses, and a heap keeps those of what was freed: blocks of their own go back at once. And a
    # thread that finds the heap taken, as on a busy machine, would reserve the addresses of another one.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=root, env=environment)


def test_a_process_with_little_memory_fails_with_what_fits_and_auto_finds_it() -> None:
    failed = limited("null", 120)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr
    answer = json.loads(failed.stdout)
    assert answer["kind"] == "OutOfMemoryError" and "in use" in answer["error"]
    assert re.search(r"4,096 examples at once.*[\d,]+ at once fit: set training.micro_batch to", answer["error"])
    found = json.loads(limited("auto", 140).stdout)
    assert found.get("steps") == 2, found.get("error")
    assert found["micro_batch"] < 4096
    roomy = json.loads(limited("auto", 8000).stdout)
    assert roomy["micro_batch"] == 4096 and found["loss"] == pytest.approx(roomy["loss"], rel=1e-4)
