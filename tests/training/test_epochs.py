"""A training ends after so many passes over its split, if steps and seconds do not end it before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.spec import RunSpec, make_spec
from pipeline.training.epochs import planned_steps, with_limit
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from tests.conftest import cell_spec, lane_spec, prepared_in_memory, window_spec
from tests.training.test_data import spec_and_set


def ended_at(spec: RunSpec) -> tuple[int, list[list[int]]]:
    """The last step of a training on 40 examples, and the rows of every batch that it read."""
    session = Session(spec, prepared_in_memory(spec, train=40))
    rows: list[list[int]] = []
    read = session.batches.batch

    def noting(number: int) -> Any:
        batch = read(number)
        rows.append(batch.index.tolist())
        return batch

    session.batches.batch = noting  # type: ignore[method-assign]
    return session.run(LocalHooks(spec)).step, rows


@pytest.mark.parametrize(
    ("family", "modality", "epochs", "steps"),
    [
        ("rnn", "image", 2, 10),  # 40 examples are 5 batches of 8
        ("vae", "image", 0.5, 3),
        ("gan", "audio", 2, 5),  # whose critic takes two batches a step
    ],
)
def test_every_family_ends_after_its_epochs(family: str, modality: str, epochs: float, steps: int) -> None:
    step, rows = ended_at(cell_spec(family, modality, steps=100, epochs=epochs))
    assert step == steps
    if epochs == 2:
        assert sorted(row for batch in rows for row in batch) == sorted(2 * list(range(40)))


def test_an_epoch_of_lanes_is_every_token_once_and_of_windows_every_window() -> None:
    spec = lane_spec(steps=100, epochs=1)
    session = Session(spec, prepared_in_memory(spec))
    tokens = len(session.batches.stream)  # type: ignore[attr-defined]
    assert session.training.steps == -(-tokens // (8 * session.layout.length))
    assert ended_at(spec)[0] == session.training.steps
    # 300 samples are 4 windows of 92: 40 examples take 5 batches of 4 steps each.
    assert ended_at(window_spec(steps=100, epochs=1))[0] == 20


def test_whichever_limit_comes_first_ends_it() -> None:
    assert ended_at(cell_spec("vae", "image", steps=4, epochs=2))[0] == 4
    training = cell_spec("vae", "image", steps=100, epochs=0.1).training
    assert with_limit(training, 30, 1).steps == 3  # and not 4, which 0.1 * 30 rounds up to
    assert with_limit(training, 1, 5).steps == 1


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_plan_and_a_streamed_training_know_the_same_limit(kind: str, tmp_path: Path) -> None:
    spec, prepared = spec_and_set(kind, tmp_path, load="stream", epochs=1.5, steps=1000)
    in_memory = make_spec({**spec.as_dict(), "training": {**spec.as_dict()["training"], "load": "memory"}})
    planned = planned_steps(spec, prepared)
    assert planned < 1000
    assert Session(in_memory, prepared).training.steps == planned
    assert Session(spec, prepared).run(LocalHooks(spec)).step == planned
