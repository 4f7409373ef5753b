"""The cluster's key-value store, in this process: for what is asked of a training, without Ray."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.train.v2.api.preemption import PreemptionInfo

from pipeline.training import asked


def kept_here(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """What `asked` puts, gets and deletes from now on; no node is about to be taken away but by `announce`."""
    kept: dict[bytes, bytes] = {}

    def put(key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> None:
        kept[key] = value

    def delete(key: bytes, namespace: bytes) -> None:
        kept.pop(key, None)

    def listed(prefix: bytes, namespace: bytes) -> list[bytes]:
        return [key for key in list(kept) if key.startswith(prefix)]

    monkeypatch.setattr(asked, "_internal_kv_put", put)
    monkeypatch.setattr(asked, "_internal_kv_get", lambda key, namespace: kept.get(key))
    monkeypatch.setattr(asked, "_internal_kv_del", delete)
    monkeypatch.setattr(asked, "_internal_kv_list", listed)
    announce(monkeypatch, None)
    return kept


def announce(monkeypatch: pytest.MonkeyPatch, notice: PreemptionInfo | None) -> None:
    """Ray's notice to the workers from now on."""
    context = SimpleNamespace(preemption_context=SimpleNamespace(preemption_info=notice))
    monkeypatch.setattr(asked, "get_train_context", lambda: context)
