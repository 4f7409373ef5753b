"""Compiled phases: the numbers of the phase as it was written, the same names in checkpoints, and a way on without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.spec import RunSpec, make_spec
from pipeline.training import compiling
from pipeline.training.health import HealthWarning
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from tests.conftest import cell_spec, lane_spec, prepared_in_memory
from tests.saved_checkpoints import local_checkpoints


def _spec(case: str, compile_as: bool | str, **training: Any) -> RunSpec:
    settings = {"ema_decay": 0.9, "clip_norm": 1.0, "steps": 4, **training}
    spec = lane_spec(**settings) if case == "rnn-carried" else cell_spec(*case.split("-"), **settings)
    tree = copy.deepcopy(spec.as_dict())
    tree["training"]["compile"] = compile_as
    return make_spec(tree)


def _trained(spec: RunSpec, folder: Path | None = None) -> tuple[dict[str, torch.Tensor], list[HealthWarning]]:
    session = Session(spec, prepared_in_memory(spec))
    hooks = LocalHooks(spec, folder)
    session.run(hooks)
    return session.stepper.state.bundled_weights(), hooks.warnings


@pytest.fixture(autouse=True)
def _afresh() -> None:
    torch._dynamo.reset()


# With the stand-in the graphs are cut and differentiated as by the compiler, and then run operation by operation.
@pytest.mark.parametrize(
    ("case", "backend"),
    [
        ("vae-image", "aot_eager"),
        pytest.param("rnn-carried", "aot_eager", marks=pytest.mark.slow),
        pytest.param("gan-audio", "aot_eager", marks=pytest.mark.slow),  # with a gradient penalty
        pytest.param("vae-image", "inductor", marks=pytest.mark.slow),
        pytest.param("rnn-carried", "inductor", marks=pytest.mark.slow),
        pytest.param("gan-audio", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_steps_equal_those_as_written(
    case: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", backend)
    # In double precision, for the reason that the cases of parity are: Adam makes steps of a critic's rounding noise.
    torch.set_default_dtype(torch.float64)
    try:
        expected, _ = _trained(_spec(case, False))
        seen, warnings = _trained(_spec(case, True), tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not [warning for warning in warnings if warning.kind == compiling.NOT_COMPILED]
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value, rtol=0, atol=1e-9 if backend == "inductor" else 0.0)
    assert load_file(local_checkpoints(tmp_path)[-1] / "weights.safetensors").keys() == expected.keys()


def _refuses(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Callable[..., Any]:
    raise ValueError("a planted failure\nin many lines")


def _fails_backwards(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Callable[..., Any]:
    class Planted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise ValueError("a planted failure")

    def run(*inputs: Any) -> Any:
        return tuple(Planted.apply(x) if x.requires_grad else x for x in graph.forward(*inputs))

    return run


@pytest.mark.parametrize("planted", [_refuses, _fails_backwards])
def test_what_cannot_be_compiled_goes_on_as_written_and_says_why(
    planted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", planted)
    expected, _ = _trained(_spec("vae-image", False))
    seen, warnings = _trained(_spec("vae-image", True))
    for name, value in expected.items():
        assert torch.equal(seen[name], value)
    (warning,) = [warning for warning in warnings if warning.kind == compiling.NOT_COMPILED]
    assert "phase 'model': ValueError: a planted failure" in warning.in_words()
    assert "in many lines" not in warning.in_words()


def test_a_machine_without_a_compiler_trains_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}):
        seen, warnings = _trained(_spec("vae-image", True, steps=2))
    cpp_builder.cpp_compiler_search.cache_clear()
    expected, _ = _trained(_spec("vae-image", False, steps=2))
    for name, value in expected.items():
        assert torch.equal(seen[name], value)
    (warning,) = [warning for warning in warnings if warning.kind == compiling.NOT_COMPILED]
    assert "InvalidCxxCompiler" in warning.message
