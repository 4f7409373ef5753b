"""Releases by hand and by a retraining, of real bundles on a real prepared set and MLflow, scored in this process."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.prepared import Prepared
from pipeline.errors import RegistryError, SpecError
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.metric import Score
from pipeline.generation.sampling import save_bundle
from pipeline.models import build_model
from pipeline.operations.contest import Contest
from pipeline.operations.ledger import Ledger
from pipeline.operations.release import decide_job, rollback_job, show
from pipeline.operations.schedule_file import Retraining, RetrainSpec
from pipeline.outcome import Outcome, Stopwatch
from pipeline.progress import silent
from pipeline.release.champion import find_champion, find_version
from pipeline.release.policy import policy_of
from pipeline.release.recorder import RunRecorder
from pipeline.release.registry import register
from pipeline.release.tracking import Tracking, open_tracking, read_artifact, start_or_continue_run
from pipeline.spec import RunSpec, make_spec
from pipeline.storage import open_store
from tests.evaluation.conftest import MLP, PICTURES, pictures, prepare_small, spec_of

__all__ = ["prepare_small", "spec_of"]

NAME = "gated"


class House:
    """A storage with a prepared set, and models of it that are worse by the noise on their weights."""

    def __init__(self, spec: RunSpec, prepared: Prepared, tracking: Tracking, folder: Path) -> None:
        self.spec, self.prepared, self.tracking, self.folder = spec, prepared, tracking, folder
        self.storage = str(folder / "storage")
        torch.manual_seed(0)
        self.weights = build_model(spec, prepared.layout).state_dict()

    def add(self, noise: float, **more: Score) -> str:
        """Register a model with the scores that its evaluation gives and `more`; its version."""
        generator = torch.Generator().manual_seed(1)
        weights = {k: v + noise * torch.randn(v.shape, generator=generator) for k, v in self.weights.items()}
        known = self.prepared.manifest
        manifest = replace(known, corpus={**known.corpus, "fingerprint": "f" * 64})
        bundle = save_bundle(self.folder / f"bundle-{noise}", self.spec, manifest.as_dict(), weights)
        scores = evaluate(self.spec, self.prepared, bundle) | {f"test/{key}": score for key, score in more.items()}
        run_id = start_or_continue_run(self.tracking, NAME, NAME, f"run-{noise}")
        values = {key: score.as_dict() for key, score in scores.items()}
        RunRecorder(self.tracking.uri, run_id).log_json(values, "scores.json")
        open_store(self.storage).write_json(values, "runs", f"key-{noise}", "scores.json")
        return register(self.tracking, run_id, bundle, NAME, scores).version

    def champion(self) -> str | None:
        found = find_champion(self.tracking.uri, NAME)
        return found.version if found else None

    def decide(self, version: str | None = None, *overrides: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(decide_job(NAME, version, overrides, self.storage).as_json())
        return answer


@pytest.fixture
def house(
    spec_of: Callable[..., RunSpec],
    prepare_small: Callable[..., Prepared],
    mlflow_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> House:
    @contextlib.contextmanager
    def no_ray(address: str | None = None) -> Iterator[None]:
        yield

    monkeypatch.setattr("pipeline.ray_session.ray_session", no_ray)
    spec = spec_of(PICTURES, {"kind": "vae", "latent_size": 3}, MLP)
    spec = make_spec({**spec.as_dict(), "storage": str(tmp_path / "storage"), "registry": {"name": NAME}})
    prepared = prepare_small(spec, {"train": pictures(60), "test": pictures(80, seed=1)})
    shutil.copyfile(mlflow_file, tmp_path / "storage" / "mlflow.db")
    return House(spec, prepared, open_tracking(spec, open_store(str(tmp_path / "storage"))), tmp_path)


def test_a_better_challenger_is_promoted_by_hand_shown_and_taken_back(house: House) -> None:
    assert (house.add(0.5), house.add(0.0), house.champion()) == ("1", "2", "1")
    answer = house.decide()
    assert (answer["decision"], answer["version"], answer["champion"], house.champion()) == ("promoted", "2", "1", "2")
    assert answer["gate"]["rules"][0]["comparison"]["gain"] > 0 and "| improve | `nll_nats` |" in answer["table"]
    assert rollback_job(NAME, "a test", house.storage)["version"] == "1"
    shown = show(NAME, house.storage)
    assert [each["kind"] for each in shown["releases"]] == ["first", "promotion", "rollback"]
    assert [each["decision"] for each in shown["versions"]] == ["first", "rolled back"]
    assert shown["champion"] == "1" and shown["unfinished"] is None


def test_a_worse_challenger_is_held_and_a_policy_may_be_given_for_once(house: House) -> None:
    house.add(0.0)
    house.add(0.5, authenticity=Score(0.1, "share", "higher"))
    assert house.decide("2")["decision"] == "held"
    limited = house.decide("2", "release.limits={authenticity: {at_least: 0.3}}")
    assert limited["decision"] == "rejected" and "authenticity is 0.1 share" in limited["reason"]
    assert house.champion() == "1"
    with pytest.raises(RegistryError, match="version 1 is the champion"):
        house.decide("1")
    with pytest.raises(RegistryError, match="no version 9"):
        house.decide("9")
    with pytest.raises(SpecError, match=r"takes release\.… and evaluation\.… only"):
        house.decide("2", "training.lr=1")
    with pytest.raises(RegistryError, match="no version of such a model"):
        show("nobody", house.storage)


@pytest.mark.parametrize(
    ("old", "new", "limit", "decision"),
    [(0.5, 0.0, None, "promoted"), (0.0, 0.5, None, "held"), (0.5, 0.0, 1.0, "rejected")],
)
def test_a_contest_ends_as_the_gate_decides(
    house: House, old: float, new: float, limit: float | None, decision: str
) -> None:
    before, after = house.add(old), house.add(new)
    release = {"limits": {"nll_nats": {"at_most": limit}}} if limit else {}
    base = make_spec({**house.spec.as_dict(), "release": release})
    spec = RetrainSpec.model_validate({"name": "nightly", "conf": "x.yaml", "cron": "0 3 * * *"})
    store = open_store(house.storage)
    retraining = Retraining(Path("x.yaml"), spec, base, policy_of(base))
    ledger = Ledger(store, "nightly")
    contest = Contest(retraining, store, ledger, house.tracking.uri, house.folder, silent, None, Stopwatch())
    run_id = find_version(house.tracking.uri, NAME, after).run_id
    outcome = Outcome(run_id, f"models:/{NAME}/{after}", after, {"test/nll_nats": 1.0})
    keys = ("prepared", "change", "warm_start", "champion_prepared", "identity")
    entry = {**dict.fromkeys(keys), "key": f"key-{new}", "champion": before, "notes": [], "reason": "because"}
    champion = contest._measured(house.prepared, f"models:/{NAME}/{before}")
    for _ in range(2):  # after a crash it is done again, and ends the same
        written = contest._decide(entry, outcome, house.prepared, champion)
        assert (written["decision"], house.champion()) == (decision, after if decision == "promoted" else before)
    assert written["comparison"]["metric"] == "nll_nats" and written["gate"]["rules"]
    assert written["held_out"]["trained_on"] is None
    assert find_version(house.tracking.uri, NAME, after).tags["atelier.decision"] == decision
    assert json.loads(read_artifact(house.tracking.uri, str(run_id), "decision.json") or b"")["decision"] == decision
