"""A loss or a gradient that is not finite ends a training with the records to blame, and the weights unharmed."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.codec import make_codec
from pipeline.data.layout import Layout
from pipeline.errors import NonFiniteLossError
from pipeline.models.base import Batch
from pipeline.spec import RunSpec, make_spec
from pipeline.storage import open_store
from pipeline.training import shared_memory
from pipeline.training.accumulation import Run
from pipeline.training.guard import Guard
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from tests.conftest import cell_spec, described_in_memory, lane_spec, prepared_in_memory, window_spec
from tests.data.prepared_sets import write_prepared
from tests.training.two_processes import run_in_others

CASES = ["vae-image", "vae-text", "vae-aggressive", "gan-image", "gan-text", "rnn-image", "lanes", "windows"]
BAD_STEP = 3
CPU = torch.device("cpu")


def spec_of(case: str, **training: Any) -> RunSpec:
    settings = {"steps": 8, "report_every": 8, "checkpoint_every": 8, "validate_every": 8, "ema_decay": 0.9, **training}
    if case == "lanes":
        return lane_spec(**settings)
    if case == "windows":
        return window_spec(**settings)
    if case == "vae-aggressive":
        spec = cell_spec("vae", "image", **settings).as_dict()
        spec["model"]["family"]["aggressive_steps"] = 2
        return make_spec(spec)
    return cell_spec(*case.split("-"), **settings)


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.nan


def plant(session: Session, rows: list[int], what: str) -> None:
    """Let every batch with one of `rows` give a loss, or else a gradient, that is not finite."""
    forward = session.stepper.model.forward

    def planted(batch: Batch | None, phase: str, context: Any) -> Any:
        output = forward(batch, phase, context)
        if batch is not None and bool(torch.isin(batch.index, torch.tensor(rows)).any()):
            output.loss = output.loss * torch.nan if what == "loss" else _BadGradient.apply(output.loss)
        return output

    session.stepper.model.forward = planted  # type: ignore[method-assign]


def state_of(session: Session) -> dict[str, Tensor]:
    stepper = session.stepper
    tensors = {**stepper.state.weights(), **stepper.state.optimizer_tensors()}
    tensors |= {f"average {name}": value for name, value in stepper.state.average.items()}
    return {name: value.clone() for name, value in tensors.items()}


def failed(session: Session) -> tuple[str, dict[str, Tensor]]:
    """What the failure of a training said, and its state before the bad step."""
    before: dict[int, dict[str, Tensor]] = {}
    step = session.stepper.step

    def noting(number: int, batches: Any, progress: float) -> Any:
        before[number] = state_of(session)
        return step(number, batches, progress)

    session.stepper.step = noting  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError) as failure:
        session.run(LocalHooks(session.spec))
    return str(failure.value), before[BAD_STEP]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("by", ["looking", "device", "parts"])
def test_the_row_is_named_and_the_weights_are_those_of_the_step_before(case: str, what: str, by: str) -> None:
    spec = spec_of(case, micro_batch=3 if by == "parts" else None)
    session = Session(spec, prepared_in_memory(spec, train=400))
    stepper = session.stepper
    if by == "device":
        # As on a GPU, where nothing looks at a loss before the next report, which comes five steps later.
        stepper.guard = Guard(stepper.device, alone=True, on_device=True)
    # In a step of several batches not the first, so that weights have moved within the step.
    last = (BAD_STEP + 1) * stepper.batches_per_step - 1
    index = session.batches.batch(last - 1 if case == "vae-aggressive" else last).index.tolist()
    before = [
        row for number in range(BAD_STEP * stepper.batches_per_step) for row in session.batches.batch(number).index
    ]
    row = next(row for row in index if row not in before)
    plant(session, [row], what)
    message, expected = failed(session)

    phase = {"gan": "critic", "vae-aggressive": "encoder"}.get(case if case == "vae-aggressive" else case[:3], "model")
    assert message.startswith(f"the {what} of phase '{phase}' is nan at step {BAD_STEP} (rank 0)"), message
    assert f"on rows [{row}] of the training split ({row} is train/{row}.raw (id {row:016x})), which give it" in message
    seen = state_of(session)
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(seen[name], value), f"{name} differs"


@pytest.mark.parametrize("optimizer", ["rmsprop", "sgd", "adamw"])
def test_every_optimizer_is_held_back_by_the_device(optimizer: str) -> None:
    spec = spec_of("gan-image", optimizer=optimizer, momentum=0.9, clip_norm=1.0)
    session = Session(spec, prepared_in_memory(spec, train=400))
    session.stepper.guard = Guard(torch.device("cpu"), alone=True, on_device=True)
    plant(session, [int(session.batches.batch(7).index[2])], "gradient")
    message, expected = failed(session)
    assert message.startswith("the gradient of phase 'critic'")
    for name, value in session.stepper.state.weights().items():
        assert torch.equal(value, expected[name])


def saturating_spec(**training: Any) -> RunSpec:
    """A critic that gives a finite score, and biases finite gradients, for a picture that is infinite in one place."""
    spec = spec_of("gan-image", **training).as_dict()
    spec["model"]["backbone"] = {"kind": "mlp", "hidden": [8], "activation": "tanh"}
    return make_spec(spec)


def plant_in_batch(session: Session, number: int, value: float) -> int:
    """Let a place of this rank's third example in a batch have a `value` that is not finite; the row of the example."""
    read = session.batches.batch

    def planted(wanted: int) -> Batch:
        batch = read(wanted)
        if wanted == number:
            batch.x = batch.x.clone()
            batch.x[2, 0, 0, 0] = value
        return batch

    session.batches.batch = planted  # type: ignore[method-assign]
    return int(read(number).index[2])


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_bad_number_that_a_layer_saturates_on_is_found_though_loss_and_biases_are_finite(
    micro_batch: int | None,
) -> None:
    spec = saturating_spec(micro_batch=micro_batch)
    session = Session(spec, prepared_in_memory(spec, train=400))
    row = plant_in_batch(session, 2 * BAD_STEP + 1, torch.inf)
    message, expected = failed(session)
    assert message.startswith(f"the gradient of phase 'critic' is nan at step {BAD_STEP} (rank 0), its loss being ")
    assert f"on rows [{row}] of" in message
    assert all(torch.equal(value, expected[name]) for name, value in state_of(session).items())


def asked_spec(**training: Any) -> RunSpec:
    """A generator that is asked for the prompts of a batch, and does not read its pictures."""
    spec = spec_of("gan-image", **training).as_dict()
    spec["model"]["condition"] = {"on": ["prompt"], "size": 4}
    spec["data"]["prompt"] = {"length": 8}
    return make_spec(spec)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_bad_number_that_a_phase_does_not_read_is_no_failure_of_it(micro_batch: int | None) -> None:
    spec = asked_spec(micro_batch=micro_batch)
    planted, plain = (Session(spec, described_in_memory(spec)) for _ in range(2))
    plant_in_batch(planted, 3 * BAD_STEP + 2, torch.nan)  # two batches of a step are the critic's, the last is not
    for session in (planted, plain):
        session.run(LocalHooks(spec))
    expected = state_of(plain)
    assert all(torch.equal(value, expected[name]) for name, value in state_of(planted).items())


def test_a_guard_on_the_device_changes_nothing_but_the_average_to_rounding() -> None:
    spec = spec_of("gan-image", clip_norm=1.0)
    looking, device = (Session(spec, prepared_in_memory(spec)) for _ in range(2))
    device.stepper.guard = Guard(torch.device("cpu"), alone=True, on_device=True)
    for session in (looking, device):
        session.run(LocalHooks(spec))
    for name, value in looking.stepper.state.weights().items():
        assert torch.equal(device.stepper.state.weights()[name], value)
    for name, value in looking.stepper.state.average.items():
        torch.testing.assert_close(device.stepper.state.average[name], value)


@pytest.mark.parametrize("bad", [0, 2, 5])
def test_a_guard_on_the_device_keeps_no_carried_state_but_that_of_the_first_bad_run(bad: int) -> None:
    guard = Guard(torch.device("cpu"), alone=True, on_device=True)
    alive: list[weakref.ref[Tensor]] = []
    for number in range(8):
        carry = torch.full((4, 3), number * (torch.nan if number > bad else 1.0)) if number else None
        run = Run("model", number, number, None, 4, 0, 0, 1, 0.0, None if carry is None else (carry,), CPU, False)
        gradient = torch.full((2,), torch.nan if number >= bad else 1.0)
        guard.admit(run, gradient.sum(), [gradient], None)
        if carry is not None:
            alive.append(weakref.ref(carry))
        del run, carry
    assert [tensor() for tensor in alive] == [None] * 7
    found = guard.look()
    assert found is not None and found.step == bad
    assert found.carry is None if bad == 0 else found.carry is not None and bool((found.carry[0] == bad).all())


def test_a_training_goes_back_from_what_the_device_found() -> None:
    spec = spec_of("vae-image", health={"rollback": True, "max_rollbacks": 2}, report_every=2, checkpoint_every=2)
    session, hooks = Session(spec, prepared_in_memory(spec, train=400)), LocalHooks(spec)
    session.stepper.guard = Guard(torch.device("cpu"), alone=True, on_device=True)
    forward = session.stepper.model.forward

    def at_the_first_rate(batch: Batch | None, phase: str, context: Any) -> Any:
        output = forward(batch, phase, context)
        if session.stepper.course.lr_factor == 1.0 and context.progress > 0.3:
            output.loss = output.loss * torch.nan
        return output

    session.stepper.model.forward = at_the_first_rate  # type: ignore[method-assign]
    assert session.run(hooks).step == 8
    assert session.stepper.course.rollbacks == [4]
    assert "it is the weights, not the data" in hooks.warnings[0].message
    assert all(bool(value.isfinite().all()) for value in state_of(session).values())


def test_several_rows_are_named_and_those_that_fail_only_together_are_not_blamed() -> None:
    spec = spec_of("vae-image")
    session = Session(spec, prepared_in_memory(spec, train=400))
    rows = session.batches.batch(BAD_STEP).index.tolist()
    plant(session, [rows[1], rows[6]], "loss")
    assert f"on rows [{rows[1]}, {rows[6]}] of the training split" in failed(session)[0]

    together = Session(spec, prepared_in_memory(spec, train=400))
    forward = together.stepper.model.forward

    def only_whole(batch: Batch, phase: str, context: Any) -> Any:
        output = forward(batch, phase, context)
        if len(batch) == 8 and rows == batch.index.tolist():
            output.loss = output.loss * torch.inf
        return output

    together.stepper.model.forward = only_whole  # type: ignore[method-assign, assignment]
    listed = re.escape(str(rows))
    assert re.search(rf"inf at step 3 \(rank 0\) on rows {listed}… of .*none of which gives it by", failed(together)[0])


def test_a_record_that_was_prepared_with_a_bad_number_is_found_in_its_shard(tmp_path: Path) -> None:
    spec = spec_of("vae-audio", load="stream")
    x = np.random.default_rng(0).uniform(-1, 1, (400, 1, 256)).astype(np.float32)
    x[217, 0, 100] = np.nan
    layout = Layout("audio", "signal", (1, 256), "float32", "gaussian", sample_rate_hz=16_000)
    codec = make_codec(spec.data.codec)
    prepared = write_prepared(open_store(str(tmp_path)), layout, x, 30, 7, codec=codec.state())
    with pytest.raises(NonFiniteLossError, match=rf"\[217\] of the training split \(217 is {217:016x} \(id {217:016x}"):
        Session(make_spec(spec.as_dict() | {"training": spec.as_dict()["training"] | {"epochs": 1}}), prepared).run(
            LocalHooks(spec)
        )


def _one_of_two(rank: int, folder: Path) -> None:
    said = []
    for what in ("loss", "gradient"):
        spec = spec_of("gan-image")
        session = Session(spec, prepared_in_memory(spec, train=400), rank=rank, world_size=2)
        whole = Session(spec, prepared_in_memory(spec, train=400))
        row = int(whole.batches.batch(7).index[5])  # the fifth of a batch is the second rank's
        plant(session, [row], what)
        message, expected = failed(session)
        assert f"step {BAD_STEP} (rank 1)" in message and f"on rows [{row}] of" in message, message
        assert all(torch.equal(value, expected[name]) for name, value in state_of(session).items())
        said.append(message)
    (folder / f"said-{rank}").write_text("\n".join(said))


def test_all_workers_say_together_whose_row_it_was(tmp_path: Path) -> None:
    run_in_others(_one_of_two, tmp_path)
    assert (tmp_path / "said-0").read_text() == (tmp_path / "said-1").read_text()


def _one_batch_of_two(rank: int, folder: Path) -> None:
    """The second rank alone has a bad number in its batch, which the phase reads, saturates on, or does not read."""
    shared_memory.TIMEOUT = 20.0  # of a rank that waits for one that went another way
    find_peers = shared_memory.find_peers
    said = []
    for meeting in (find_peers, lambda: None):
        shared_memory.find_peers = meeting
        for spec, number, value in (
            (asked_spec(), 3 * BAD_STEP + 1, torch.nan),
            (saturating_spec(), 2 * BAD_STEP + 1, torch.inf),
        ):
            session = Session(spec, described_in_memory(spec), rank=rank, world_size=2)
            row = plant_in_batch(session, number, value) if rank == 1 else None
            message, expected = failed(session)
            assert f"of phase 'critic' is nan at step {BAD_STEP} (rank 1)" in message, message
            assert row is None or f"on rows [{row}] of" in message, message
            assert all(torch.equal(value, expected[name]) for name, value in state_of(session).items())
            said.append(message)
        spec, states = asked_spec(), []
        for bad in (rank == 1, False):
            session = Session(spec, described_in_memory(spec), rank=rank, world_size=2)
            if bad:
                plant_in_batch(session, 3 * BAD_STEP + 2, torch.nan)
            session.run(LocalHooks(spec))
            states.append(state_of(session))
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    (folder / f"said-{rank}").write_text("\n".join(said))


def test_all_workers_say_together_what_one_of_them_sees_in_its_batch(tmp_path: Path) -> None:
    run_in_others(_one_batch_of_two, tmp_path)
    assert (tmp_path / "said-0").read_text() == (tmp_path / "said-1").read_text()
