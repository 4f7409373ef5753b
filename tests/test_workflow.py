"""The path of one run: which changes of a spec leave it the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.spec import RunSpec
from pipeline.storage import Store, open_store
from pipeline.training.checkpoint import FREE_TO_CHANGE, spec_differences
from pipeline.workflow import NOT_IDENTITY, run_key
from tests.conftest import cell_spec

COMPUTED_OTHERWISE: dict[str, Any] = {
    "micro_batch": 4,
    "sharding": "fsdp",
    "channels_last": True,
    "compile": True,
    "tf32": False,
    "placement": "spread",
}


def spec_of(**training: Any) -> RunSpec:
    return cell_spec("vae", "image", **training)


def test_what_is_no_part_of_a_runs_identity_may_differ_from_its_checkpoints() -> None:
    paths = {(key,) for key, part in NOT_IDENTITY.items() if part is True}
    paths |= {(key, one) for key, part in NOT_IDENTITY.items() if part is not True for one in part}
    assert paths <= set(FREE_TO_CHANGE)


def begun(storage: Path) -> tuple[Store, str]:
    """A storage with an unfinished run of `spec_of()`, and the run's name."""
    store = open_store(str(storage))
    key = run_key(spec_of(), "prepared", store)
    store.write_json({"status": "running"}, "runs", key, "run.json")
    return store, key


@pytest.mark.parametrize("changed", COMPUTED_OTHERWISE)
def test_an_unfinished_run_goes_on_when_it_is_computed_otherwise(changed: str, tmp_path: Path) -> None:
    store, key = begun(tmp_path)
    now = spec_of(**{changed: COMPUTED_OTHERWISE[changed]})
    assert now != spec_of()
    assert run_key(now, "prepared", store) == key
    assert spec_differences(spec_of().as_dict(), now.as_dict()) == []


@pytest.mark.parametrize("changed", [{"precision": "bfloat16"}, {"lr": 0.5}])
def test_another_run_begins_when_another_model_would_come_of_it(changed: dict[str, Any], tmp_path: Path) -> None:
    store, key = begun(tmp_path)
    assert run_key(spec_of(**changed), "prepared", store) != key
