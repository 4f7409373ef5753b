"""Training from a prepared set on a storage: streamed or in memory the same weights, and how long it waits for data."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.codec import make_codec
from pipeline.data.prepared import Prepared
from pipeline.errors import PreparedDataError
from pipeline.models.base import Batch
from pipeline.spec import RunSpec
from pipeline.storage import open_store
from pipeline.training.checkpoint import Position
from pipeline.training.course import Course
from pipeline.training.following import describe
from pipeline.training.in_process import LocalHooks
from pipeline.training.loop import run_loop
from pipeline.training.session import Session
from pipeline.training.timing import StepTimer
from pipeline.training.wishes import Unasked
from tests.conftest import cell_spec, lane_spec, raw_examples
from tests.data.prepared_sets import write_prepared
from tests.saved_checkpoints import local_checkpoints

STEPS = 20


def spec_and_set(kind: str, folder: Path, **training: Any) -> tuple[RunSpec, Prepared]:
    """A spec, and its set of 40 pictures, or of a text, in shards and row groups smaller than an epoch."""
    settings = {"steps": STEPS, "checkpoint_every": 7, "shuffle_window": 16, **training}
    spec = lane_spec(**settings) if kind == "text" else cell_spec("vae", "image", **settings)
    codec = make_codec(spec.data.codec, single_document=True)
    raws = raw_examples(codec.modality, 40)
    tail: list[int] = []
    if kind == "text":
        codec.fit(raws)
        stream, length = codec.encode("".join(raws)), codec.layout().length
        x, tail = (
            stream[: len(stream) // length * length].reshape(-1, length),
            stream[-(len(stream) % length) :].tolist(),
        )
    else:
        x = np.stack([codec.encode(raw) for raw in raws])
    store = open_store(str(folder / "storage"))
    return spec, write_prepared(store, codec.layout(), x, 9, 4, tail, codec=codec.state())


def weights_after(spec: RunSpec, prepared: Prepared, folder: Path | None = None, resume: Path | None = None) -> Any:
    session = Session(spec, prepared, resume_from=resume)
    session.run(LocalHooks(spec, folder))
    return session.stepper.state.weights()


@pytest.mark.parametrize("kind", ["text", "image"])
def test_streamed_training_is_training_in_memory_and_resumes(kind: str, tmp_path: Path) -> None:
    spec, prepared = spec_and_set(kind, tmp_path, load="memory")
    streamed, _ = spec_and_set(kind, tmp_path, load="stream")
    expected = weights_after(spec, prepared, tmp_path / "checkpoints")
    seen = weights_after(streamed, prepared)
    # In the middle of an epoch, and by the other way.
    resumed = weights_after(streamed, prepared, resume=local_checkpoints(tmp_path / "checkpoints")[0])
    for name, value in expected.items():
        assert torch.equal(seen[name], value) and torch.equal(resumed[name], value)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_shard_lost_while_training_ends_it_with_its_name(kind: str, tmp_path: Path) -> None:
    spec, prepared = spec_and_set(kind, tmp_path, load="stream")
    prepared.store.local_path("train-00001.parquet").unlink()
    with pytest.raises(PreparedDataError, match=r"train-00001\.parquet: the shard is missing"):
        Session(spec, prepared).run(LocalHooks(spec))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("atelier-batches")]


def test_the_held_out_split_is_cut_to_what_memory_may_hold(tmp_path: Path) -> None:
    spec, prepared = spec_and_set("image", tmp_path, load="stream", memory_megabytes=1)
    prepared.manifest.splits["validation"] = prepared.manifest.splits["train"]
    session = Session(spec, prepared)
    assert session.held_out is not None and len(session.held_out) == 40
    many = write_prepared(
        open_store(str(tmp_path / "many")), prepared.layout, np.zeros((8000, 1, 12, 12), np.uint8), 900
    )
    many.manifest.splits["validation"] = many.manifest.splits["train"]
    session = Session(spec, many)
    assert session.held_out is not None and len(session.held_out) == 2**20 // 144


class Clock:
    """A time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_share_of_time_that_steps_wait_for_batches_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("pipeline.training.loop.time", SimpleNamespace(monotonic=clock, perf_counter=clock))
    spec = cell_spec("gan", "image", steps=6, report_every=2, checkpoint_every=2)
    reports: list[dict[str, float]] = []

    class Slow:
        def batch(self, number: int) -> Batch:
            clock.now += 3.0
            return Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1))

        def close(self) -> None:
            pass

    class Stepper:
        world_size, rank, batches_per_step, device, course = 1, 0, 2, torch.device("cpu"), Course()
        timer, state = StepTimer(), SimpleNamespace(gathered=contextlib.nullcontext)
        model = SimpleNamespace(annealed_share=lambda progress: 1.0)

        def step(self, number: int, batches: Slow, progress: float) -> dict[str, torch.Tensor]:
            batches.batch(2 * number)
            batches.batch(2 * number + 1)
            clock.now += 4.0
            return {"loss": torch.tensor(1.0)}

        def check_finite(self, means: dict[str, float], number: int) -> None:
            assert means == {"train/loss": 1.0}

        def weight_norms(self) -> dict[str, torch.Tensor]:
            return {}

        def noticed(self, step: int) -> list[object]:
            return []

    class Hooks(Unasked):
        def report(self, at: Position, metrics: dict[str, float]) -> None:
            reports.append(metrics)

        def checkpoint(self, at: Position, stepper: object) -> None:
            clock.now += 100.0  # is no time of a step

    run_loop(Stepper(), Slow(), spec.training, Hooks())  # type: ignore[arg-type]
    assert [report["train/data_wait_share"] for report in reports] == pytest.approx([0.6, 0.6, 0.6])


@pytest.mark.parametrize(("share", "said"), [(0.25, ", 25% of the time waiting for data"), (0.04, "")])
def test_progress_says_when_training_waits_for_data(share: float, said: str) -> None:
    metrics = {"train/loss": 2.0, "train/examples_per_second": 10.0, "train/data_wait_share": share}
    assert describe({"step": 1, "metrics": metrics}, 10, None) == f"10 examples/s, loss 2{said}"
