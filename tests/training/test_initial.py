"""The weights given are those that training begins with, unless there is a checkpoint; what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.data.prepared import Prepared
from pipeline.errors import TransferError
from pipeline.models import build_model
from pipeline.spec import RunSpec
from pipeline.storage import open_store
from pipeline.training.in_process import LocalHooks
from pipeline.training.initial import keep_weights, load_weights, read_weights
from pipeline.training.session import Session
from tests.conftest import CELLS, cell_spec, prepared_in_memory
from tests.saved_checkpoints import local_checkpoints


def inheriting_spec(family: str, modality: str, **training: object) -> tuple[RunSpec, Prepared]:
    spec = cell_spec(family, modality, init_from="models:/other/1", **training)
    return spec, prepared_in_memory(spec)


def other_weights(spec: RunSpec, prepared: Prepared) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        model = build_model(spec.model_copy(update={"seed": 99}), prepared.layout)
        return {name: torch.randn_like(value) * 0.1 for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("family", "modality"), CELLS)
def test_a_session_begins_with_the_weights_and_so_does_their_average(family: str, modality: str) -> None:
    spec, prepared = inheriting_spec(family, modality, ema_decay=0.9)
    weights = other_weights(spec, prepared)
    stepper = Session(spec, prepared, initial_weights=weights).stepper
    assert all(torch.equal(value, weights[name]) for name, value in stepper.state.weights().items())
    average = stepper.state.average
    assert average and all(torch.equal(value, weights[name]) for name, value in average.items())


def test_a_checkpoint_goes_before_the_initial_weights(tmp_path: Path) -> None:
    spec, prepared = inheriting_spec("vae", "image")
    weights = other_weights(spec, prepared)
    first = Session(spec, prepared, initial_weights=weights)
    first.run(LocalHooks(spec, tmp_path))
    resumed = Session(spec, prepared, resume_from=local_checkpoints(tmp_path)[-1])
    trained = first.stepper.state.weights()
    assert all(torch.equal(value, trained[name]) for name, value in resumed.stepper.state.weights().items())
    assert any(not torch.equal(value, weights[name]) for name, value in trained.items())


def test_the_first_weight_that_does_not_fit_is_named() -> None:
    spec, prepared = inheriting_spec("rnn", "text")
    weights, model = other_weights(spec, prepared), build_model(spec, prepared.layout)
    load_weights(model, weights, "models:/other/1")
    name = next(iter(weights))
    shape = list(weights[name].shape)
    for wrong, seen, wanted in (
        ({**weights, name: weights[name][:-1]}, [shape[0] - 1, *shape[1:]], shape),
        ({key: value for key, value in weights.items() if key != name}, None, shape),
    ):
        with pytest.raises(TransferError) as refused:
            load_weights(model, wrong, "models:/other/1")
        assert f"'models:/other/1': {name!r} is {seen} in the weights and {wanted} in the model" in str(refused.value)
    with pytest.raises(TransferError, match=r"'more' is \[1\] in the weights and None in the model"):
        load_weights(model, {**weights, "more": torch.zeros(1)}, "models:/other/1")


def test_weights_that_nobody_resolved_are_no_new_ones() -> None:
    spec, prepared = inheriting_spec("rnn", "text")
    with pytest.raises(TransferError, match="begins with new weights"):
        Session(spec, prepared)


def test_weights_are_kept_once_and_a_change_is_found(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "storage"))
    name = keep_weights(store, {"w": torch.arange(3.0)})
    assert name == keep_weights(store, {"w": torch.arange(3.0)})
    assert torch.equal(read_weights(store, name)["w"], torch.arange(3.0))
    path = store.local_path("initial", name)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(TransferError, match="the file was changed"):
        read_weights(store, name)
