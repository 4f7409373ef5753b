"""Warm starts: the weights of a trained model, put where every worker reads them, and taken up before the first step.

The driver resolves `training.warm_start` and keeps the weights in the storage under their own hash; each rank reads
them from there when it has no checkpoint to go on from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from pipeline.errors import WarmStartError
from pipeline.storage import Store

FOLDER = "warm"


def keep_weights(store: Store, weights: Path) -> str:
    """Copy the file of a bundle's weights into the storage, unless it is there; the name to read it by."""
    data = weights.read_bytes()
    name = f"{hashlib.sha256(data).hexdigest()}.safetensors"
    if not store.exists(FOLDER, name):
        store.write_bytes(data, FOLDER, name)
    return name


def read_weights(store: Store, name: str) -> dict[str, Tensor]:
    """Weights that `keep_weights` kept. Raises: WarmStartError when they were changed, StorageError."""
    data = store.read_bytes(FOLDER, name)
    if f"{hashlib.sha256(data).hexdigest()}.safetensors" != name:
        raise WarmStartError(f"{store.path(FOLDER, name)}: the file was changed; delete it and run the same command")
    return safetensors.torch.load(data)


def misfit(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """The first thing that keeps `weights` from being loaded into `model`, in words; None when they fit."""
    own = model.state_dict()
    for name, value in own.items():
        if name not in weights:
            return f"the model's {name!r} {list(value.shape)} is not among the weights"
        if weights[name].shape != value.shape:
            return f"{name!r} is {list(weights[name].shape)} in the weights and {list(value.shape)} in the model"
    more = [name for name in weights if name not in own]
    return f"the weights' {more[0]!r} {list(weights[more[0]].shape)} is not in the model" if more else None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Begin with `weights`, which come from `source`. Raises: WarmStartError naming the first misfit."""
    wrong = misfit(model, weights)
    if wrong is not None:
        raise WarmStartError(
            f"training.warm_start {source!r}: {wrong}; train with the same model and codec (a text codec fitted on "
            "other texts has another vocabulary), or leave warm_start out"
        )
    model.load_state_dict(dict(weights))
