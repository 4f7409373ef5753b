"""What a step asks of a device: no wait for a number, the order of pictures in memory, the flags of its multipliers."""

from __future__ import annotations

import copy
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models import build_model
from pipeline.spec import RunSpec, make_spec
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from pipeline.training.tensor_cores import tensor_cores
from tests.conftest import CELLS, MODALITIES, cell_spec, gan_with_options, lane_spec, prepared_in_memory, window_spec
from tests.saved_checkpoints import local_checkpoints
from tests.training.parity_cases import spec_of

CASES = ["rnn-carried", "rnn-windows", "vae-options-image", "vae-options-text"]
CASES += [f"{family}-{modality}" for family, modality in CELLS]
CASES += [f"gan-{modality}-options" for modality in MODALITIES]

ON_A_CPU_ALONE = {
    # Asks `x.device.type == "cpu"` first.
    "rnn.py:_window_step",
    # Of a tensor that lies in the host's memory always.
    "windows.py:batch",
}
"""Functions of ours that read numbers from a tensor because it costs nothing there."""
OF_TORCH_ON_A_CPU = {
    # Looks whether classes are in range, on a CPU: aten/src/ATen/native/Onehot.cpp.
    "one_hot",
}


def spec_of_case(case: str, **training: Any) -> RunSpec:
    settings: dict[str, Any] = {"steps": 6, "ema_decay": 0.9, "clip_norm": 1.0, **training}
    if case == "rnn-carried":
        return lane_spec(**settings)
    if case == "rnn-windows":
        return window_spec(**settings)
    if case.startswith("vae-options"):
        tree = copy.deepcopy(spec_of(case).as_dict())
        return make_spec({**tree, "training": {**tree["training"], **settings}})
    family, modality, *options = case.split("-")
    return gan_with_options(modality, **settings) if options else cell_spec(family, modality, **settings)


class Reads(TorchDispatchMode):
    """Where numbers are read from tensors: on a GPU each would wait until all that was asked of it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            stack = traceback.extract_stack()[:-1]
            inner = next(frame for frame in reversed(stack) if "torch" not in frame.filename.split("/"))
            place, line = f"{Path(inner.filename).name}:{inner.name}", inner.line or ""
            if place not in ON_A_CPU_ALONE and not any(f"{name}(" in line for name in OF_TORCH_ON_A_CPU):
                self.places.append(f"{inner.filename}:{inner.lineno}: {inner.line}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_a_step_reads_no_number_from_the_device(case: str) -> None:
    spec = spec_of_case(case)
    session = Session(spec, prepared_in_memory(spec))
    session.stepper.guard.on_device = True
    session.stepper.step(0, session.batches, 0.0)  # what is looked at once, after a start or a validation
    with Reads() as reads:
        for number in range(1, 4):
            session.stepper.step(number, session.batches, number / 6)
    assert not reads.places


def test_a_planted_read_is_found() -> None:
    spec = spec_of_case("vae-image")
    session = Session(spec, prepared_in_memory(spec))
    with Reads() as reads:
        session.stepper.step(0, session.batches, 0.0)  # the guard looks at the loss and the norm, as it does on a CPU
    assert len(reads.places) == 2
    assert all("guard.py" in place for place in reads.places)


@pytest.mark.parametrize("case", CASES)
def test_no_tensor_of_a_model_stays_in_the_hosts_memory(case: str) -> None:
    spec = spec_of_case(case)
    model = build_model(spec, prepared_in_memory(spec).layout).to("meta")
    left = [
        f"{type(module).__name__}.{name}"
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]
    assert not left
    assert all(value.is_meta for value in [*model.parameters(), *model.buffers()])


def test_padding_is_not_looked_for_on_a_device() -> None:
    spec = spec_of_case("vae-text")
    model = build_model(spec, prepared_in_memory(spec).layout).to("meta")
    x, z = torch.zeros(3, 16, dtype=torch.int64, device="meta"), torch.zeros(3, 4, device="meta")
    # Without values nothing can be looked for.
    assert model._nats(x, z, None, None).shape == (3, 16)  # type: ignore[operator]


@pytest.mark.parametrize("backbone", ["conv", "resnet"])
@pytest.mark.parametrize("family", ["vae", "gan"])
def test_channels_last_changes_the_rounding_alone(family: str, backbone: str, tmp_path: Path) -> None:
    weights, saved = {}, {}
    for last in (False, True):
        tree = copy.deepcopy(spec_of_case(f"{family}-image", optimizer="sgd", momentum=0.9).as_dict())
        tree["training"]["channels_last"] = last
        if backbone == "resnet":
            tree["model"]["backbone"] = {"kind": "resnet", "channels": [8, 16], "kernel": 3, "stride": 2}
        spec = make_spec(tree)
        session = Session(spec, prepared_in_memory(spec))
        pictures = [p for p in session.stepper.model.parameters() if p.dim() == 4 and min(p.shape) > 1]
        assert pictures
        assert all(p.is_contiguous(memory_format=torch.channels_last) == last for p in pictures)
        session.run(LocalHooks(spec, tmp_path / str(last)))
        weights[last] = session.stepper.state.bundled_weights()
        saved[last] = spec, local_checkpoints(tmp_path / str(last))
    for name, value in weights[False].items():
        torch.testing.assert_close(weights[True][name], value, rtol=0, atol=1e-5)
    # A checkpoint of one goes on as the other, and its optimiser's state takes on the order of the weights.
    for last, (spec, checkpoints) in saved.items():
        resumed = Session(spec, prepared_in_memory(spec), resume_from=saved[not last][1][0])
        assert resumed.start.step == 3
        for optimizer in resumed.stepper.optimizers.values():
            for parameter, state in optimizer.state.items():
                assert all(v.stride() == parameter.stride() for v in state.values() if v is not None and v.dim())
        resumed.run(LocalHooks(spec))
        for name, value in weights[last].items():
            torch.testing.assert_close(resumed.stepper.state.bundled_weights()[name], value, rtol=0, atol=1e-5)
        assert len(checkpoints) == 2


@pytest.mark.parametrize("tf32", [True, False])
def test_a_gpu_multiplies_as_the_spec_says_and_is_left_as_it_was(tf32: bool) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with tensor_cores(spec_of_case("vae-image", tf32=tf32).training, torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert torch.backends.cudnn.allow_tf32 == tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    with tensor_cores(spec_of_case("vae-image", tf32=tf32).training, torch.device("cpu")):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
