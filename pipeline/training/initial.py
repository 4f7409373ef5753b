"""The weights that a training begins with: put where every worker reads them, and taken up before the first step.

The driver makes them of the model that `training.init_from` names (`pipeline/inheriting.py`) and keeps them in the
storage under their own hash; each rank reads them from there when it has no checkpoint to go on from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor, nn

from pipeline.errors import TransferError
from pipeline.storage import Store

FOLDER = "initial"


def keep_weights(store: Store, weights: Mapping[str, Tensor]) -> str:
    """Write weights into the storage, unless they are there; the name to read them by."""
    # Safetensors refuses tensors that share memory, as tied weights do; a copy does not.
    data = safetensors.torch.save({name: value.detach().contiguous().clone() for name, value in weights.items()})
    name = f"{hashlib.sha256(data).hexdigest()}.safetensors"
    if not store.exists(FOLDER, name):
        store.write_bytes(data, FOLDER, name)
    return name


def read_weights(store: Store, name: str) -> dict[str, Tensor]:
    """Weights that `keep_weights` kept. Raises: TransferError when they were changed, StorageError."""
    data = store.read_bytes(FOLDER, name)
    if f"{hashlib.sha256(data).hexdigest()}.safetensors" != name:
        raise TransferError(f"{store.path(FOLDER, name)}: the file was changed; delete it and run the same command")
    return safetensors.torch.load(data)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Begin with `weights`, all that the model has, made of those of `source`.

    Raises: TransferError naming the first that does not fit.
    """
    own = model.state_dict()
    for name in dict.fromkeys([*own, *weights]):
        here, there = own.get(name), weights.get(name)
        if here is None or there is None or here.shape != there.shape:
            seen, wanted = (None if each is None else list(each.shape) for each in (there, here))
            raise TransferError(
                f"training.init_from {source!r}: {name!r} is {seen} in the weights and {wanted} in the model; they "
                "were made for another model, so give the run another name"
            )
    model.load_state_dict(dict(weights))
