"""Fused gradient descent takes the steps of the plain one, and a step that is skipped leaves no trace."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.guard import Guard
from pipeline.training.optimizer import make_optimizer
from tests.conftest import cell_spec

SCALES = {"matrix": 1.0, "bias": 1.0, "scale": 0.5}
LATE = "bias"
"""The parameter that is frozen at first."""


def new_parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"matrix": (5, 3), "bias": (7,), "scale": ()}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def optimizer_of(parameters: Mapping[str, nn.Parameter], momentum: float) -> torch.optim.Optimizer:
    training = cell_spec("vae", "image", optimizer="sgd", momentum=momentum, weight_decay=0.1, lr=0.1).training
    return make_optimizer(parameters, training, 1.0, SCALES)


def give_gradients(parameters: Mapping[str, nn.Parameter], step: int, frozen: bool) -> None:
    generator = torch.Generator().manual_seed(step)
    for name, parameter in parameters.items():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if frozen and name == LATE else gradient


def state_of(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    momenta = [value for parameter in parameters.values() for value in optimizer.state[parameter].values()]
    return [*(parameter.detach() for parameter in parameters.values()), *momenta]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fused_descent_takes_the_steps_of_the_plain_one_also_of_a_parameter_that_joins_late(momentum: float) -> None:
    fused, plain = new_parameters(), new_parameters()
    optimizer = optimizer_of(fused, momentum)
    groups = [
        {"params": [plain["matrix"], plain["bias"]], "lr": 0.1},
        {"params": [plain["scale"]], "lr": 0.05},
    ]
    expected = torch.optim.SGD(groups, momentum=momentum, weight_decay=0.1, foreach=False, fused=False)
    assert optimizer.defaults["fused"]
    for step in range(6):
        for parameters in (fused, plain):
            give_gradients(parameters, step, frozen=step < 3)
        optimizer.step()
        expected.step()
        torch.testing.assert_close(state_of(fused, optimizer), state_of(plain, expected))
    assert len(state_of(fused, optimizer)) == (6 if momentum else 3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_step_of_descent_that_the_device_skips_leaves_no_trace(momentum: float, bad: int) -> None:
    """Also the first one, before which there is no momentum."""
    skipping, plain = new_parameters(), new_parameters()
    optimizer, expected = optimizer_of(skipping, momentum), optimizer_of(plain, momentum)
    guard = Guard(torch.device("cpu"), alone=True, on_device=True)
    for step in range(4):
        give_gradients(skipping, step, frozen=False)
        guard.bad.fill_(float(step == bad))
        if step == bad:
            for parameter in skipping.values():
                parameter.grad = torch.full_like(parameter, torch.nan)
        guard.take_step(optimizer)
        if step != bad:
            give_gradients(plain, step, frozen=False)
            expected.step()
        if step > 0:
            torch.testing.assert_close(state_of(skipping, optimizer), state_of(plain, expected), rtol=0, atol=0)
