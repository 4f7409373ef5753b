"""Training with half the bits: what stays in full precision, and that the loss is nearly the same."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
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
