"""Training, scores and samples on a GPU, held against the CPU's; a minute on one, and skipped without.

    python -m pytest tests/gpu

Needs neither Ray, MLflow nor soundfile. With ATELIER_TEST_DEVICE=cpu the CPU stands in for the GPU where it can.
Tolerances are for single precision without TF32: 1e-4 of a value after one step, whose sums alone are rounded
otherwise; 2% after ten, over which differences grow.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import NonFiniteLossError, OutOfMemoryError
from pipeline.evaluation.likelihood import evaluate_split
from pipeline.models.base import Batch, Noise, SamplingOptions, make_generator
from pipeline.models.recurrence import run_recurrent
from pipeline.progress import silent
from pipeline.spec import RunSpec, make_spec
from pipeline.storage import open_store
from pipeline.training.in_process import LocalHooks, train_in_process
from pipeline.training.session import Session
from pipeline.training.tensor_cores import tensor_cores
from pipeline.training.timing import STEP_PARTS
from tests.conftest import cell_spec, described_in_memory, prepared_in_memory
from tests.saved_checkpoints import local_checkpoints
from tests.training.test_device_work import CASES as PLAIN
from tests.training.test_device_work import spec_of_case

DEVICE = os.environ.get("ATELIER_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU"),
]
on_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="of a GPU alone")

ASKED = "asked-"
"""Cases conditioned on labels and prompts, of a set that has both."""
CASES = [*PLAIN, "asked-gan-image", "asked-vae-text", "asked-rnn-text"]
RESUMED = ["rnn-carried", "rnn-windows", "vae-options-text", "vae-image"]
RESUMED += ["gan-text-options", "gan-image-options", "gan-audio-options", "asked-gan-image"]
EXACT = {"precision": "float32", "tf32": False, "optimizer": "sgd", "lr": 1e-2}


def case_of(case: str, **training: Any) -> tuple[RunSpec, Any]:
    """The spec and the prepared set of a case."""
    spec = spec_of_case(case.removeprefix(ASKED), **training)
    if not case.startswith(ASKED):
        return spec, prepared_in_memory(spec)
    tree = spec.as_dict()
    # A generator asked for prompts learns from a batch's; asked for labels alone, it draws what it is asked for.
    on = ["label" if "gan" in case else "prompt"]
    tree["model"]["condition"] = {"on": on, "size": 4, "dropout": 0.1}
    tree["data"]["prompt"] = {"length": 8}
    spec = make_spec(tree)
    return spec, described_in_memory(spec)


def session_on(device: str, case: str, **training: Any) -> Session:
    spec, prepared = case_of(case, **training)
    return Session(spec, prepared, device)


def take(session: Session, steps: int) -> list[dict[str, float]]:
    """What each of some steps reports."""
    found = []
    with tensor_cores(session.spec.training, session.stepper.device):
        for number in range(steps):
            means = session.stepper.step(number, session.batches, number / 10)
            found.append({name: float(value) for name, value in means.items()})
    session.stepper.check_finite({}, steps)
    return found


def weights_of(session: Session) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in session.stepper.state.weights().items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].cpu(), value.cpu(), **tolerance)


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is drawn in the host's memory, so that it is the same on any device: generators of devices differ."""
    begin = Noise.__init__

    def init(self: Any, generator: torch.Generator, rank: int = 0, world_size: int = 1) -> None:
        begin(self, generator, rank, world_size)
        self.host = torch.Generator().manual_seed(generator.initial_seed() % 2**63)

    def drawn(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def of_host(self: Any, *shape: int) -> Tensor:
            return self._slice(draw(self._shape(shape), generator=self.host).to(self.generator.device))

        return of_host

    monkeypatch.setattr(Noise, "__init__", init)
    monkeypatch.setattr(Noise, "normal", drawn(torch.randn))
    monkeypatch.setattr(Noise, "uniform", drawn(torch.rand))


# --- steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_ten_steps_are_those_of_a_cpu(case: str, same_noise: None) -> None:
    here, there = (take(session_on(device, case, **EXACT), 10) for device in ("cpu", DEVICE))
    for name, value in here[0].items():
        assert there[0][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert all(value - value == 0.0 for means in there for value in means.values())
    if case != "gan-text-options":  # a rounding may choose another token, and then all is different
        for name, value in here[-1].items():
            assert there[-1][name] == pytest.approx(value, rel=2e-2, abs=2e-3), name


@pytest.mark.parametrize("case", CASES)
def test_ten_steps_in_half_precision_are_near_those_in_single(case: str, same_noise: None) -> None:
    single, half = (take(session_on(DEVICE, case, **EXACT | {"precision": p}), 10) for p in ("float32", "bfloat16"))
    assert all(value - value == 0.0 for means in half for value in means.values())
    losses = [name for name in single[0] if name.endswith("loss") and not case.startswith("gan-text")]
    for name in losses:
        assert half[0][name] == pytest.approx(single[0][name], rel=5e-2, abs=5e-2), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
@on_cuda
def test_a_step_waits_for_no_gpu(case: str, precision: str) -> None:
    session = session_on(DEVICE, case, precision=precision)
    session.stepper.step(0, session.batches, 0.0)  # the libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 4):
            session.stepper.step(number, session.batches, number / 6)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "sgd"])
def test_every_optimiser_learns(optimizer: str) -> None:
    lr = 3e-2 if optimizer == "sgd" else 1e-2
    means = take(session_on(DEVICE, "vae-image", **EXACT | {"optimizer": optimizer, "lr": lr, "steps": 100}), 40)
    assert sum(m["loss"] for m in means[-5:]) < sum(m["loss"] for m in means[:5])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@on_cuda
def test_a_recurrent_layer_in_half_precision_is_in_bfloat16(kind: str) -> None:
    torch.manual_seed(0)
    layer = getattr(nn, kind)(32, 64, batch_first=True).to(DEVICE)
    x = torch.randn(8, 12, 32, device=DEVICE)
    found: dict[bool, tuple[Tensor, Tensor]] = {}
    for half in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            hidden, after = run_recurrent(layer, x)
        states = after if isinstance(after, tuple) else (after,)
        assert {hidden.dtype, *(state.dtype for state in states)} == {torch.bfloat16 if half else torch.float32}
        (gradient,) = torch.autograd.grad(hidden.float().square().mean(), [layer.weight_hh_l0])
        found[half] = hidden.float(), gradient
    assert found[True][1].dtype == torch.float32
    torch.testing.assert_close(found[True][0], found[False][0], rtol=0, atol=0.03)
    difference = (found[True][1] - found[False][1]).norm() / found[False][1].norm()
    assert difference < 0.05


# --- state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_goes_on_as_one_that_went_through(case: str, tmp_path: Path) -> None:
    """Bit for bit where the device repeats itself, which is tried; else within 1e-4."""
    settings = {"steps": 10, "report_every": 5, "checkpoint_every": 5, "validate_every": 5, "precision": "float32"}
    spec, prepared = case_of(case, **settings)
    through = []
    for folder in ("first", "again"):
        session = Session(spec, prepared, DEVICE)
        session.run(LocalHooks(spec, tmp_path / folder))
        through.append(weights_of(session))
    repeats = all(value.equal(through[1][name]) for name, value in through[0].items())
    checkpoint = local_checkpoints(tmp_path / "first")[0]
    resumed = Session(spec, prepared, DEVICE, resume_from=checkpoint)
    assert resumed.start.step == 5
    resumed.run(LocalHooks(spec))
    tolerance = {"rtol": 0.0, "atol": 0.0} if repeats else {"rtol": 1e-4, "atol": 1e-4}
    assert_same(weights_of(resumed), through[0], **tolerance)

    on_cpu = Session(spec, prepared, "cpu", resume_from=checkpoint)
    again = Session(spec, prepared, DEVICE, resume_from=checkpoint)
    assert_same(weights_of(on_cpu), weights_of(again), rtol=0.0, atol=0.0)
    means = on_cpu.stepper.step(5, on_cpu.batches, 0.5)
    assert all(bool(value.isfinite()) for value in means.values())


def test_training_in_this_process_ends_with_a_model_and_its_checkpoints(tmp_path: Path) -> None:
    spec, prepared = case_of("vae-image", steps=10, report_every=5, checkpoint_every=5)
    trained = train_in_process(spec, prepared, open_store(str(tmp_path)), "run", None, None, silent)
    assert trained.step == 10
    assert all(bool(value.isfinite().all()) for value in trained.weights.values())
    assert {f"time/{part}_seconds" for part in STEP_PARTS if part != "communication"} <= trained.metrics.keys()
    assert all(trained.metrics[f"time/{part}_seconds"] > 0 for part in ("data", "forward", "backward", "optimiser"))
    assert trained.metrics["train/peak_memory_mib"] > 0
    if DEVICE == "cuda":
        assert all(value.is_cuda for value in trained.weights.values())


class Spoilt:
    """Batches of a session whose first example is not a number from one batch on."""

    def __init__(self, inner: Any, first: int) -> None:
        self.inner, self.first = inner, first

    def batch(self, number: int) -> Batch:
        batch: Batch = self.inner.batch(number)
        if number >= self.first:
            batch = replace(batch, x=batch.x.clone().index_fill_(0, torch.zeros_like(batch.index[:1]), torch.nan))
        return batch

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("case", ["vae-image", "gan-audio", "gan-image-options"])
def test_an_example_that_is_not_a_number_is_named_and_changes_no_weight(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 10, "report_every": 5, "checkpoint_every": 10, "validate_every": 10, "precision": "float32"}
    # Adam makes a whole step of a gradient that is rounding alone: the two trainings must round alike.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    before = session_on(DEVICE, case, **settings)
    take(before, 3)
    session = session_on(DEVICE, case, **settings)
    each = session.stepper.batches_per_step
    row = int(session.batches.batch(3 * each).index[0])
    session.batches = Spoilt(session.batches, 3 * each)  # type: ignore[assignment]
    with pytest.raises(NonFiniteLossError, match=rf"at step 3 .*rows \[{row}\].*train/{row}\.raw"):
        session.run(LocalHooks(session.spec))
    assert_same(weights_of(session), weights_of(before), rtol=1e-4, atol=1e-5)


# --- scores and samples -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_scores_and_samples_are_those_of_a_cpu(case: str, same_noise: None) -> None:
    spec, prepared = case_of(case, **EXACT)
    model = Session(spec, prepared).stepper.model.eval()
    elsewhere = copy.deepcopy(model).to(DEVICE)
    arrays = prepared.load_split("validation")
    with tensor_cores(spec.training, torch.device(DEVICE)):
        here = evaluate_split(model, arrays, prepared.layout, spec, 0)
        there = evaluate_split(elsewhere, arrays, prepared.layout, spec, 0, device=DEVICE)
        assert_same(there, here, rtol=1e-4, atol=1e-4)
        drawn, again = (
            elsewhere.sample(3, make_generator(0, "sample", device=DEVICE), SamplingOptions()).cpu() for _ in range(2)
        )
        assert drawn.equal(again)
        assert bool(drawn.isfinite().all())
        if drawn.is_floating_point():
            torch.testing.assert_close(
                model.sample(3, make_generator(0, "sample"), SamplingOptions()), drawn, rtol=1e-3, atol=1e-4
            )


# --- compiled, out of memory, traced ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [True, "cuda_graphs"])
@on_cuda
def test_a_compiled_phase_gives_the_losses_of_one_that_is_not(how: Any, same_noise: None) -> None:
    written = take(session_on(DEVICE, "vae-image", **EXACT), 4)
    session = session_on(DEVICE, "vae-image", compile=how, **EXACT)
    compiled = take(session, 4)
    assert [phase.failure for phase in session.stepper.compiled.values()] == [None]
    for one, other in zip(written, compiled, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


def large_spec(micro_batch: Any) -> RunSpec:
    """A step of some 700 MiB, in one pass."""
    settings = {"batch_size": 512, "micro_batch": micro_batch, "precision": "float32", "steps": 3}
    tree = cell_spec("vae", "image", **settings).as_dict()
    tree["data"]["codec"]["size"] = [64, 64]
    tree["model"]["backbone"]["channels"] = [64, 128]
    return make_spec(tree)


@pytest.mark.parametrize("micro_batch", [None, "auto"])
@on_cuda
def test_what_does_not_fit_says_what_would(micro_batch: Any) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 512 * 2**20) / total)
    try:
        spec = large_spec(micro_batch)
        session = Session(spec, prepared_in_memory(spec), DEVICE)
        if micro_batch is None:
            with pytest.raises(OutOfMemoryError, match=r"at once fit: set training\.micro_batch to \d+"):
                session.stepper.step(0, session.batches, 0.0)
        else:
            hooks = LocalHooks(spec)
            session.run(hooks)
            assert 1 <= hooks.metrics["train/micro_batch"] < 512
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_a_trace_has_the_parts_of_a_step_and_what_the_device_computes(tmp_path: Path) -> None:
    settings = {"steps": 10, "report_every": 5, "validate_every": 10, "profile": {"steps": 2, "wait": 2}}
    spec, prepared = case_of("vae-image", **settings)

    def keep(folder: Path) -> None:
        for path in folder.iterdir():
            shutil.copy(path, tmp_path)

    Session(spec, prepared, DEVICE).run(LocalHooks(spec, on_trace=keep))
    (path,) = tmp_path.glob("*.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert {"model forward", "model backward", "model optimiser"} <= {event.get("name") for event in events}
    assert any(event.get("cat") == ("kernel" if DEVICE == "cuda" else "cpu_op") for event in events)
    (table,) = tmp_path.glob("*-operators.txt")
    assert "Self" in table.read_text()
