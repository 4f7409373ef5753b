"""Counted operations of a step equal those counted by hand, and counting changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.spec import RunSpec
from pipeline.training.flops import FlopCount, peak_tflops, precision_of
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from tests.conftest import FAMILIES, cell_spec, gan_with_options, lane_spec, prepared_in_memory, window_spec


def _count(module: nn.Module, x: Tensor, backward: bool = True) -> int:
    with FlopCount() as count:
        out = module(x)
        if backward:
            (out[0] if isinstance(out, tuple) else out).sum().backward()
    return count.flops


def test_a_perceptron_takes_two_operations_a_weight_and_example_and_twice_as_many_backward() -> None:
    batch, sizes = 5, (7, 11, 3)
    network = nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 3))
    forward = 2 * batch * (sizes[0] * sizes[1] + sizes[1] * sizes[2])
    assert _count(network, torch.randn(batch, 7), backward=False) == forward
    # Of the first layer no gradient of its input is asked for.
    assert _count(network, torch.randn(batch, 7)) == 3 * forward - 2 * batch * sizes[0] * sizes[1]
    assert _count(network, torch.randn(batch, 7, requires_grad=True)) == 3 * forward


def test_a_convolution_takes_two_operations_a_tap_channel_and_output() -> None:
    layer = nn.Conv2d(3, 4, 5, stride=2, padding=2)
    outputs = 6 * 4 * 8 * 8  # batch, channels, space
    forward = 2 * outputs * 3 * 5 * 5
    assert _count(layer, torch.randn(6, 3, 16, 16), backward=False) == forward
    assert _count(layer, torch.randn(6, 3, 16, 16, requires_grad=True)) == 3 * forward


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_a_recurrent_layer_takes_two_operations_a_weight_step_and_example(kind: type[nn.RNNBase], gates: int) -> None:
    batch, steps, size, hidden = 4, 9, 6, 10
    layer = kind(size, hidden, batch_first=True)
    forward = 2 * batch * steps * gates * hidden * (size + hidden)
    assert _count(layer, torch.randn(batch, steps, size), backward=False) == forward
    counted = _count(layer, torch.randn(batch, steps, size, requires_grad=True))
    # The products of a GRU, which is not fused on a CPU, are seen one by one: those of the gradient that nobody asked
    # for, of the first state, are left out.
    left_out = 0 if kind is nn.LSTM else 2 * batch * gates * hidden * hidden
    assert 3 * forward - left_out <= counted <= 3 * forward


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_a_recurrent_layer_of_cudnn_is_counted_alike(kind: type[nn.RNNBase], gates: int) -> None:
    layer = kind(6, 10, num_layers=2, batch_first=True).cuda()
    forward = 2 * 4 * 9 * gates * 10 * (6 + 10 + 10 + 10)
    assert _count(layer, torch.randn(4, 9, 6, device="cuda", requires_grad=True)) == 3 * forward


def test_cudnn_layers_are_counted_by_their_matrices() -> None:
    # The kernels are not here; their arguments are these.
    from pipeline.training.flops import RECURRENT, aten

    weights = [torch.zeros(40, 6), torch.zeros(40, 10), torch.zeros(40), torch.zeros(40)]
    x = torch.zeros(9, 4, 6)
    forward = 2 * 9 * 4 * 40 * (6 + 10)
    assert RECURRENT[aten._cudnn_rnn](x, weights, 4, None, None, None, 2, 10, 0, 1) == forward
    assert RECURRENT[aten._cudnn_rnn_backward](x, weights, 4, None, None) == 2 * forward


def _specs() -> list[RunSpec]:
    settings = {"steps": 7, "report_every": 2, "validate_every": 4, "ema_decay": 0.9, "clip_norm": 1.0}
    specs = [cell_spec(family, "image", **settings) for family in FAMILIES]
    specs += [lane_spec(**settings), window_spec(**settings)]
    return specs + [gan_with_options(modality, **settings) for modality in ("text", "audio")]


@pytest.mark.parametrize("spec", _specs(), ids=lambda spec: spec.name)
def test_a_training_whose_steps_are_counted_ends_with_the_same_weights(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Session(spec, prepared_in_memory(spec))
    hooks = LocalHooks(spec)
    counted.run(hooks)
    assert hooks.metrics["train/model_tflops_per_second"] > 0
    assert "train/mfu" not in hooks.metrics  # nobody knows the peak of a processor

    monkeypatch.setattr("pipeline.training.instruments.Instruments._counted", lambda self: pytest.fail("counted"))
    monkeypatch.setattr("pipeline.training.instruments.Instruments.metrics", lambda *_: {})
    monkeypatch.setattr("pipeline.training.instruments.Instruments.validated", lambda *_: {})
    plain = Session(spec, prepared_in_memory(spec))
    plain.run(LocalHooks(spec))
    expected = plain.stepper.state.weights() | plain.stepper.state.optimizer_tensors()
    for name, value in (counted.stepper.state.weights() | counted.stepper.state.optimizer_tensors()).items():
        assert torch.equal(value, expected[name]), name


def test_what_is_compiled_runs_as_compiled_while_it_is_counted() -> None:
    ran: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def call(*arguments: Any) -> Any:
            ran.append(1)
            return graph(*arguments)

        return call

    layer = nn.Linear(8, 4)
    compiled = torch.compile(layer, backend=backend)
    x = torch.randn(5, 8)
    compiled(x)
    with FlopCount() as count:
        compiled(x)
    assert (len(ran), count.flops) == (2, 2 * 5 * 8 * 4)


def test_the_step_that_is_counted_is_not_the_first() -> None:
    spec = cell_spec("vae", "image", steps=6, report_every=2)
    session = Session(spec, prepared_in_memory(spec))
    reports: list[dict[str, float]] = []
    session.run(LocalHooks(spec, on_report=lambda at, metrics: reports.append(metrics)))
    assert ["train/model_tflops_per_second" in metrics for metrics in reports] == [False, True, True, True]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name, "bfloat16") == peak


def test_the_precision_is_the_one_that_products_are_computed_in() -> None:
    perceptron, convolution = nn.Linear(2, 2), nn.Conv1d(1, 1, 1)
    assert precision_of(perceptron, half=True) == "bfloat16"
    assert precision_of(perceptron, half=False) == "float32"
    assert precision_of(convolution, half=False) == "tfloat32"  # cuDNN's own setting lets it
