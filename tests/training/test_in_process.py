"""Where a training in the driver's own process computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import SpecError
from pipeline.progress import silent
from pipeline.storage import open_store
from pipeline.training import in_process
from pipeline.training.in_process import train_in_process
from tests.conftest import cell_spec, prepared_in_memory


class Begun(Exception):
    """The training would begin."""


def device_of(use_gpu: Any, there: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where it would train on a machine with a GPU, or without."""

    def begin(spec: Any, prepared: Any, device: str, **_: Any) -> None:
        raise Begun(device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(in_process, "Session", begin)
    spec = cell_spec("vae", "image", num_workers=0, use_gpu=use_gpu)
    with pytest.raises(Begun) as begun:
        train_in_process(spec, prepared_in_memory(spec), open_store(str(folder)), "run", None, None, silent)
    return str(begun.value)


@pytest.mark.parametrize(
    ("use_gpu", "there", "device"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), (True, True, "cuda"), (False, True, "cpu"), (False, False, "cpu")],
)
def test_a_gpu_is_used_as_asked_where_there_is_one(
    use_gpu: Any, there: bool, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert device_of(use_gpu, there, tmp_path, monkeypatch) == device


def test_a_training_that_shall_use_a_gpu_does_not_train_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match=r"training\.use_gpu is true, and this process has no GPU.* to auto or false"):
        device_of(True, False, tmp_path, monkeypatch)
    assert list(tmp_path.iterdir()) == []
