"""Sharing work items out, as far as it needs no Ray."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray.data._internal import cluster_autoscaler as scaling
from ray.data._internal import stats

from pipeline.data import spread
from pipeline.data.spread import ITEMS, MOST_BEGUN, Told, shares


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (7, 1), (25, 2), (1000, 16), (3, 0)])
def test_shares_hold_all_items_in_order_and_end_with_single_ones(count: int, workers: int) -> None:
    found = list(shares([{"number": number} for number in range(count)], workers))
    assert [item["number"] for share in found for item in share] == list(range(count))
    sizes = [len(share) for share in found]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 1
    assert sizes[0] <= max(1, count // (2 * max(1, workers)))


def test_a_worker_that_is_sent_a_stage_imports_no_torch() -> None:
    code = (
        "import sys, pipeline.data.spread, pipeline.data.stages, pipeline.data.near;"
        "print([name for name in ('torch', 'mlflow', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ray_data_is_told_nothing_of_what_a_stage_holds() -> None:
    # It makes dictionaries of dataclasses, down to the last field, and writes strings of everything else.
    told = Told(lambda item: {"sum": sum(item["numbers"])})
    assert not dataclasses.is_dataclass(told)
    (answers,) = told({ITEMS: pickle.dumps([{"numbers": [1, 2]}])}).values()
    assert pickle.loads(answers) == [{"sum": 3}]


@pytest.mark.parametrize(("own", "slots", "expected"), [(False, 2, 0), (True, 2, 2), (True, 64, MOST_BEGUN)])
def test_a_ray_of_ones_own_starts_a_few_workers_early_and_anothers_none(
    own: bool, slots: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    importing = SimpleNamespace(remote=lambda: started.append("worker"))
    monkeypatch.setattr(spread, "is_own", lambda: own)
    monkeypatch.setattr(spread, "free_slots", lambda cpus: slots)
    monkeypatch.setattr(spread.ray, "remote", lambda num_cpus: lambda function: importing)
    monkeypatch.setattr(stats, "get_or_create_stats_actor", lambda: started.append("stats"))
    monkeypatch.setattr(scaling, "get_or_create_autoscaling_coordinator", lambda: started.append("coordinator"))
    spread.begin()
    assert started == ["worker"] * expected + (["stats", "coordinator"] if own else [])


@pytest.mark.parametrize(
    ("own", "told", "expected"),
    [(True, 4, {"num_cpus": 2}), (True, 2, {}), (True, 5, {"num_cpus": 2}), (False, 4, {"compute": 2}), (False, 2, {})],
)
def test_as_many_tasks_run_at_once_as_there_are_processors(
    own: bool, told: int, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "is_own", lambda: own)
    monkeypatch.setattr(spread.ray, "cluster_resources", lambda: {"CPU": float(told)})
    options = spread.options(2, 7)
    assert options == (expected if "compute" not in expected else {"compute": spread.TaskPoolStrategy(2)})
