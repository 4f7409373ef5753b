"""Warm starts: training begins with the weights given, unless there is a checkpoint; what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.data.prepared import Prepared
from pipeline.errors import WarmStartError
from pipeline.models import build_model
from pipeline.spec import RunSpec
from pipeline.storage import open_store
from pipeline.training.launch import LocalHooks, local_checkpoints
from pipeline.training.session import Session
from pipeline.training.warm import keep_weights, misfit, read_weights
from tests.conftest import CELLS, cell_spec, prepared_in_memory


def warm_spec(family: str, modality: str, **training: object) -> tuple[RunSpec, Prepared]:
    spec = cell_spec(family, modality, warm_start="models:/other/1", **training)
    return spec, prepared_in_memory(spec)  # type: ignore[return-value]


def other_weights(spec: RunSpec, prepared: Prepared) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        model = build_model(spec.model_copy(update={"seed": 99}), prepared.layout)
        return {name: torch.randn_like(value) * 0.1 for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("family", "modality"), CELLS)
def test_a_session_begins_with_the_weights_and_so_does_their_average(family: str, modality: str) -> None:
    spec, prepared = warm_spec(family, modality, ema_decay=0.9)
    weights = other_weights(spec, prepared)
    stepper = Session(spec, prepared, warm_weights=weights).stepper
    assert all(torch.equal(value, weights[name]) for name, value in stepper.weights().items())
    assert stepper.average and all(torch.equal(value, weights[name]) for name, value in stepper.average.items())


def test_a_checkpoint_goes_before_the_warm_start(tmp_path: Path) -> None:
    spec, prepared = warm_spec("vae", "image")
    weights = other_weights(spec, prepared)
    first = Session(spec, prepared, warm_weights=weights)
    first.run(LocalHooks(spec, tmp_path))
    resumed = Session(spec, prepared, resume_from=local_checkpoints(tmp_path)[-1])
    trained = first.stepper.weights()
    assert all(torch.equal(value, trained[name]) for name, value in resumed.stepper.weights().items())
    assert any(not torch.equal(value, weights[name]) for name, value in trained.items())


def test_the_first_weight_that_does_not_fit_is_named() -> None:
    spec, prepared = warm_spec("rnn", "text")
    weights = other_weights(spec, prepared)
    name = next(iter(weights))
    shape = list(weights[name].shape)
    weights[name] = weights[name][:-1]
    with pytest.raises(WarmStartError, match=r"models:/other/1.*vocabulary") as refused:
        Session(spec, prepared, warm_weights=weights)
    assert f"{name!r} is {[shape[0] - 1, *shape[1:]]} in the weights and {shape} in the model" in str(refused.value)


def test_weights_that_are_missing_or_too_many_are_named() -> None:
    spec, prepared = warm_spec("rnn", "text")
    weights, model = other_weights(spec, prepared), build_model(spec, prepared.layout)
    assert misfit(model, weights) is None
    name = next(iter(weights))
    assert f"the model's {name!r}" in (misfit(model, {k: v for k, v in weights.items() if k != name}) or "")
    assert "the weights' 'more'" in (misfit(model, {**weights, "more": torch.zeros(1)}) or "")


def test_a_warm_start_that_nobody_resolved_is_no_cold_one() -> None:
    spec, prepared = warm_spec("rnn", "text")
    with pytest.raises(WarmStartError, match="begins with new weights"):
        Session(spec, prepared)


def test_weights_are_kept_once_and_a_change_is_found(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "storage"))
    save_file({"w": torch.arange(3.0)}, tmp_path / "model.safetensors")
    name = keep_weights(store, tmp_path / "model.safetensors")
    assert name == keep_weights(store, tmp_path / "model.safetensors")
    assert torch.equal(read_weights(store, name)["w"], torch.arange(3.0))
    path = store.local_path("warm", name)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(WarmStartError, match="the file was changed"):
        read_weights(store, name)
