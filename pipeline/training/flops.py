"""The floating-point operations of a training step: counted while one is taken, and set against what a device can do.

Plain PyTorch, in every training worker. What counts is multiplying and adding in matrix products, convolutions,
attention and recurrent layers, two operations a pair, forward and backward with whatever the step needs of either:
a penalty on gradients, a critic's several updates. What is done number by number (activations, losses, the optimiser)
does not count, as is the custom (Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def _fused_layer(x: Tensor, *weights: Any, **_: Any) -> int:
    """A recurrent layer of oneDNN: at each step of x `[T, B, I]`, W x + U h of all gates."""
    return 2 * prod(x.shape[:-1]) * (weights[0].numel() + weights[1].numel())


def _fused_layers(x: Tensor, weights: list[Tensor], *_: Any, **__: Any) -> int:
    """All recurrent layers of cuDNN, whose biases are vectors among the weights."""
    return 2 * prod(x.shape[:-1]) * sum(weight.numel() for weight in weights if weight.dim() == 2)


def _backward(forward: Callable[..., int]) -> Callable[..., int]:
    """The gradients of what went in and of the weights: each as many products as forward."""
    return lambda *arguments, **named: 2 * forward(*arguments, **named)


RECURRENT: dict[Any, Callable[..., int]] = {
    aten.mkldnn_rnn_layer: _fused_layer,
    aten.mkldnn_rnn_layer_backward: _backward(_fused_layer),
    aten._cudnn_rnn: _fused_layers,
    aten._cudnn_rnn_backward: _backward(_fused_layers),
}
"""What PyTorch's own table lacks: the fused kernels of an LSTM or a GRU. Unfused ones are products that it knows."""


class FlopCount(TorchDispatchMode):
    """Counts, in `flops`, what is computed while it is entered. It looks on and changes nothing: every operation is
    the one that would have been called."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What is compiled runs as compiled, where PyTorch would go without under another mode: its kernels round
        otherwise, and a counted step must be the step that it would have been."""
        return True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        packet = getattr(function, "overloadpacket", None)
        if packet in RECURRENT:
            self.flops += RECURRENT[packet](*args, **(kwargs or {}))
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result


# --- what a device can do -------------------------------------------------------------------------------------

PEAKS: dict[str, dict[str, float]] = {
    "B200": {"bfloat16": 2250, "tfloat32": 1125, "float32": 75},
    "H200 NVL": {"bfloat16": 835.5, "tfloat32": 417.5, "float32": 60},
    "H200": {"bfloat16": 989.4, "tfloat32": 494.7, "float32": 66.9},
    "H100 NVL": {"bfloat16": 835.5, "tfloat32": 417.5, "float32": 60},
    "H100 PCIe": {"bfloat16": 756.5, "tfloat32": 378, "float32": 51},
    "H100": {"bfloat16": 989.4, "tfloat32": 494.7, "float32": 66.9},
    "L40S": {"bfloat16": 362.05, "tfloat32": 183, "float32": 91.6},
    "L4": {"bfloat16": 121, "tfloat32": 60, "float32": 30.3},
    "A100": {"bfloat16": 312, "tfloat32": 156, "float32": 19.5},
    "A10": {"bfloat16": 125, "tfloat32": 62.5, "float32": 31.2},
    "V100": {"float32": 15.7},
    "T4": {"float32": 8.1},
}
"""TFLOP a second of dense products by GPU and precision, from NVIDIA's data sheets (those of Ada, Hopper and later give
tensor cores with sparsity, which is twice as much)."""


def peak_tflops(name: str, precision: str) -> float | None:
    """What a GPU of that name ("NVIDIA A100-SXM4-80GB") can do in `precision`; None of one that is not in the table, or
    of a part of one."""
    words = set(name.replace("-", " ").split())
    known = [gpu for gpu in PEAKS if words.issuperset(gpu.split())]
    return PEAKS[max(known, key=len)].get(precision) if known and "MIG" not in words else None


def precision_of(model: nn.Module, half: bool) -> str:
    """The precision that a model's products are computed in on a GPU, by PyTorch's settings now."""
    if half:
        return "bfloat16"
    fused = any(isinstance(module, nn.RNNBase | nn.modules.conv._ConvNd) for module in model.modules())
    rounded = torch.backends.cuda.matmul.allow_tf32 or (fused and torch.backends.cudnn.allow_tf32)
    return "tfloat32" if rounded else "float32"


def utilisation(model: nn.Module, half: bool, device: torch.device, flops_per_second: float) -> float | None:
    """The share, 0 to 1, of a GPU's peak that the model's own operations take (MFU); None of a CPU, or of a GPU whose
    peak is not known."""
    if device.type != "cuda":
        return None
    peak = peak_tflops(torch.cuda.get_device_name(device), precision_of(model, half))
    return None if peak is None else flops_per_second / (peak * 1e12)
