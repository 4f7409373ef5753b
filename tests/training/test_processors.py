"""Threads follow what a container may use, not what its machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pipeline.progress import silent
from pipeline.storage import open_store
from pipeline.training import in_process
from pipeline.training.processors import processors
from tests.conftest import cell_spec, prepared_in_memory


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_processors_are_those_that_the_container_may_use(
    files: dict[str, str], limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processors(tmp_path) == (limit or 64)


@pytest.mark.parametrize(("asked_for", "expected"), [(None, 3), (2, 2)])
def test_a_training_in_this_process_takes_the_threads_asked_for_or_all_processors(
    asked_for: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "processors", lambda: 3)
    spec = cell_spec("vae", "image", num_workers=0, threads_per_worker=asked_for)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        prepared, store = prepared_in_memory(spec), open_store(str(tmp_path))
        in_process.train_in_process(spec, prepared, store, "run", None, None, silent)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
