"""Real digits in memory, small enough that a training takes seconds, for tests of what happens in one."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from pipeline.data.builtin import BUILTINS
from pipeline.spec import RunSpec, make_spec
from tests.conftest import CONV, RECURRENT, PreparedInMemory


@functools.cache
def _digits() -> np.ndarray:
    """5,000 digits in a fixed random order, uint8 `[N, 14, 14, 1]`."""
    digits = np.stack([payload for payload, _ in BUILTINS["digits"].items()])
    return np.random.default_rng(0).permutation(digits)[:, ::2, ::2, None]


def digits_spec(family: str, **changes: Any) -> RunSpec:
    """A small model of digits; `changes` are of `training`, and those of the family go under `own`."""
    options: dict[str, dict[str, Any]] = {
        "rnn": {"kind": "rnn"},
        "vae": {"kind": "vae", "latent_size": 8, "binarise": "threshold"},
        "gan": {"kind": "gan", "latent_size": 8, "critic_steps": 2},
    }
    own = changes.pop("own", {})
    codec: dict[str, Any] = {"kind": "image", "size": [14, 14], "likelihood": "bernoulli"}
    backbones = {"rnn": RECURRENT, "vae": {"kind": "mlp", "hidden": [128]}, "gan": CONV | {"channels": [16, 32]}}
    settings: dict[str, Any] = {"steps": 200, "batch_size": 32, "optimizer": "adam", "lr": 2e-3}
    settings |= {"report_every": 10, "validate_every": 50, "checkpoint_every": 50, "threads_per_worker": 1}
    if family == "gan":
        settings |= {"betas": [0.5, 0.9], "schedule": "constant", "lr": 1e-3}
    return make_spec(
        {
            "name": f"digits-{family}",
            "data": {
                "source": {"kind": "builtin", "name": "digits"},
                "codec": {"kind": "raster", "size": [14, 14], "levels": 4} if family == "rnn" else codec,
            },
            "model": {"family": options[family] | own, "backbone": backbones[family]},
            "training": settings | changes,
        }
    )


def digits_prepared(spec: RunSpec, train: int = 1000, validation: int = 128) -> Any:
    digits = _digits()
    raws = {"train": list(digits[:train]), "validation": list(digits[train : train + validation])}
    return PreparedInMemory(spec, raws)
