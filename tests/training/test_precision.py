"""Training with half the bits: what stays in full precision, and that the loss is nearly the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.training import steps
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from pipeline.training.steps import has_fast_bfloat16
from tests.conftest import CELLS, cell_spec, prepared_in_memory


@pytest.mark.parametrize(("family", "modality"), CELLS)
def test_bfloat16_changes_the_loss_little_and_no_state(family: str, modality: str) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        spec = cell_spec(family, modality, steps=1, precision=precision, clip_norm=1.0)
        session = Session(spec, prepared_in_memory(spec))
        hooks = LocalHooks(spec)
        session.run(hooks)
        states = [*session.stepper.model.parameters()]
        for optimizer in session.stepper.optimizers.values():
            states += [value for state in optimizer.state.values() for value in state.values()]
        assert all(state.dtype == torch.float32 for state in states)
        losses[precision] = hooks.metrics["train/critic_loss" if family == "gan" else "train/loss"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02, abs=0.05)


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_bfloat16_where_that_is_faster_and_float32_elsewhere(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "has_fast_bfloat16", lambda device: fast)
    losses = {}
    for precision in ("auto", "bfloat16", "float32"):
        spec = cell_spec("vae", "image", steps=1, precision=precision)
        hooks = LocalHooks(spec)
        Session(spec, prepared_in_memory(spec)).run(hooks)
        losses[precision] = hooks.metrics["train/loss"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["auto"] == losses["bfloat16" if fast else "float32"]


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_processor_is_faster_in_bfloat16_with_instructions_for_it(
    avx512: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_fast_bfloat16(torch.device("cpu")) == (avx512 or amx)


def test_what_is_said_of_this_processor_is_what_the_kernel_says() -> None:
    flags = [line.split() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")]
    if not flags:
        pytest.skip("its kernel names no instructions as those of x86 are named")
    assert has_fast_bfloat16(torch.device("cpu")) == bool({"avx512_bf16", "amx_tile"} & set(flags[0]))


@pytest.mark.parametrize(("capability", "fast"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_is_faster_in_bfloat16_from_ampere_on(
    capability: tuple[int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fast_bfloat16(torch.device("cuda")) == fast
