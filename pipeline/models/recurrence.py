"""Recurrent layers that compute in the precision that was asked for, and in shards. Plain PyTorch."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

State = Tensor | tuple[Tensor, ...] | None
"""Of a GRU `[1, B, H]`, of an LSTM state and cell; None for an empty one."""


def run_recurrent(layer: nn.Module, x: Tensor, state: State = None) -> tuple[Tensor, Any]:
    """What a batch-first LSTM or GRU of one layer gives of x `[B, T, inputs]`: `[B, T, H]` and the state after it."""
    if x.is_cuda and torch.is_autocast_enabled("cuda") and not isinstance(layer, _InShards):
        return _of_copies(layer, x, state)
    hidden, after = layer(x, state)
    return hidden, after


class _InShards(nn.Module):
    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, Any]:
        return _of_copies(self, x, state)


def put_in_shards(layer: nn.LSTM | nn.GRU) -> None:
    """From now on the layer's parameters are others in every pass, put together from shards.

    PyTorch's own layers, when they see others than in the pass before, move them into a stretch of memory for cuDNN.
    What is put together from shards arrives in the old one, and on a GPU such a layer computed for ever with the
    weights of its first step. It is still called as a module, since that is what puts its parameters together.
    """
    kind = type(layer)
    layer.__class__ = type(f"{kind.__name__}InShards", (_InShards, kind), {})  # as `fully_shard` does itself


# Not traced by the compiler, as PyTorch's own layers are not; this decorator imports the compiler when it is called.
@torch._disable_dynamo
def _of_copies(layer: nn.Module, x: Tensor, state: State) -> tuple[Tensor, Any]:
    """With copies of the weights, on a GPU in autocast's type. PyTorch has cuDNN's layers compute in float16 whatever
    autocast says (its AutocastRNN.cpp, in 2.11): gradients of a mean over a batch are below what that holds, and
    nothing here scales losses."""
    half = x.is_cuda and torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if half else x.dtype
    # One stretch of memory in cuDNN's order, matrices before biases, which it takes as it is.
    weights = [weight.to(dtype) if half else weight for weight in layer.parameters()]
    flat = torch.cat([weight.flatten() for weight in weights])
    parts = flat.split([weight.numel() for weight in weights])
    views = [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
    if state is None:
        empty = x.new_zeros(1, len(x), weights[1].shape[1], dtype=dtype)
        state = (empty, empty) if isinstance(layer, nn.LSTM) else empty
    x, settings = x.to(dtype), (True, 1, 0.0, layer.training, False, True)
    with torch.autocast("cuda", enabled=False) if half else contextlib.nullcontext():
        if isinstance(state, tuple):
            hidden, *after = torch.lstm(x, [part.to(dtype) for part in state], views, *settings)
            return hidden, tuple(after)
        return torch.gru(x, state.to(dtype), views, *settings)
