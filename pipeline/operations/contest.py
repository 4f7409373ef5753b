"""A contest: the champion scored on the new data, a challenger trained and scored on the same, the better one kept.

Runs in the driver, with Ray at hand. Every step can be done again after a crash: the training has a key of its own and
is not repeated, scores come out the same, a promotion that happened stays, and the ledger's entry comes last.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipeline.errors import ChampionMovedError, WarmStartError
from pipeline.operations.decisions import Plan, held_out, identity
from pipeline.operations.ledger import Entry, Ledger
from pipeline.operations.schedule_file import Retraining
from pipeline.progress import Progress
from pipeline.release.recorder import RunRecorder
from pipeline.release.registry import Champion, fetch, find_champion, promote, tag_version
from pipeline.storage import Store
from pipeline.workflow import Outcome, Stopwatch, finished_outcome, train_job

if TYPE_CHECKING:
    from pipeline.data.prepared import Prepared
    from pipeline.evaluation.compare import Comparison, Measured
    from pipeline.spec import RunSpec


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def this_process() -> dict[str, Any]:
    return {"host": os.uname().nodename, "id": os.getpid(), "started_at": psutil.Process().create_time()}


@dataclass
class Contest:
    """A challenger against the champion, from the prepared data to the entry of the decision."""

    retraining: Retraining
    store: Store
    ledger: Ledger
    tracking_uri: str
    folder: Path
    progress: Progress
    address: str | None
    watch: Stopwatch

    def run(self, entry: Entry | None, plan: Plan | None) -> Entry:
        """Go on from an open `entry`, or begin what `plan` says. Returns the decision's entry."""
        from pipeline.data.prepare import prepare
        from pipeline.data.prepared import open_prepared

        base = self.retraining.base
        with self.watch.stage("prepare"):
            if entry is not None and finished_outcome(self.store, entry["key"]) is not None:
                prepared = open_prepared(self.store, entry["prepared"])
            else:
                prepared = prepare(base, self.store, self.progress)
        version = entry["champion"] if entry is not None else plan.champion.version if plan and plan.champion else None
        # Scored before anything is trained: a champion that cannot be compared is an error that costs nothing.
        champion = None if version is None else self._measured(prepared, f"models:/{self.retraining.model}/{version}")
        if entry is None:
            assert plan is not None
            entry = self._begin(plan, prepared)
        with self.watch.stage("challenger"):
            outcome = self._train(entry)
        if version is None or champion is None:
            return self._decide_first(entry, outcome)
        return self._decide(entry, outcome, prepared, champion)

    def _begin(self, plan: Plan, prepared: Prepared) -> Entry:
        notes: list[str] = []
        warm = self._warm_start(plan.champion, prepared, notes)
        wanted = identity(self.retraining)
        version = plan.champion.version if plan.champion else None
        text = json.dumps([self.retraining.spec.name, prepared.key, version, wanted], sort_keys=True)
        return self.ledger.append(
            {
                "kind": "begun",
                "at": now(),
                "reason": plan.reason,
                "key": f"{self.retraining.spec.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
                **plan.figures(),
                "prepared": prepared.key,
                "warm_start": warm,
                "notes": notes,
                "identity": wanted,
                "process": this_process(),
            }
        )

    def _warm_start(self, champion: Champion | None, prepared: Prepared, notes: list[str]) -> str | None:
        """The model to begin with. Raises: WarmStartError when it must be the champion, whose weights do not fit."""
        wish = self.retraining.spec.warm_start
        if champion is None or wish is False:
            return None
        from pipeline.generation.sampling import load_bundle
        from pipeline.models import build_model
        from pipeline.training.warm import misfit

        weights = load_bundle(fetch(champion.model_uri, self.tracking_uri, self.folder / "warm")).model.state_dict()
        wrong = misfit(build_model(self.retraining.base, prepared.layout), weights)
        if wrong is None:
            return champion.model_uri
        if wish is True:
            raise WarmStartError(
                f"{self.retraining.path}: warm_start from {champion.model_uri}: {wrong}; set warm_start to 'auto' or "
                "false to begin with new weights"
            )
        notes.append(f"begins with new weights, since those of {champion.model_uri} do not fit: {wrong}")
        return None

    def _train(self, entry: Entry) -> Outcome:
        base = self.retraining.base
        training = base.training.model_copy(update={"warm_start": entry["warm_start"]})
        spec: RunSpec = base.model_copy(update={"training": training})
        tags = {
            "atelier.retraining": self.retraining.spec.name,
            "atelier.compared_with": str(entry["champion"]),
            "atelier.warm_start": str(entry["warm_start"]),
        }
        return train_job(spec, self.progress, self.address, key=entry["key"], tags=tags)

    def _measured(self, prepared: Prepared, model_uri: str) -> Measured:
        from pipeline.evaluation.evaluate import measure

        bundle = fetch(model_uri, self.tracking_uri, self.folder / model_uri.rsplit("/", 1)[-1])
        with self.watch.stage("compare"):
            return measure(self.retraining.base, prepared, bundle, self.retraining.metric, self.progress)

    def _decide_first(self, entry: Entry, outcome: Outcome) -> Entry:
        leader = find_champion(self.tracking_uri, self.retraining.model)
        if leader is not None and leader.version == outcome.model_version:
            reason = f"there was no champion; version {leader.version} is the first"
            return self._record("first", reason, entry, outcome)
        reason = f"version {leader.version if leader else None} became champion meanwhile and was not compared"
        return self._record("held", reason, entry, outcome)

    def _decide(self, entry: Entry, outcome: Outcome, prepared: Prepared, champion: Measured) -> Entry:
        from pipeline.data.prepared import find_prepared
        from pipeline.evaluation.compare import better_than, compare

        assert outcome.model_uri is not None and outcome.model_version is not None
        challenger = self._measured(prepared, outcome.model_uri)
        comparison = compare(self.retraining.metric, champion, challenger)
        wins, reason = better_than(comparison, self.retraining.spec.compare.min_gain)
        then = entry["champion_prepared"]
        checked = asdict(held_out(prepared, find_prepared(self.store, then) if then else None))
        if wins:
            try:
                promote(self.tracking_uri, self.retraining.model, outcome.model_version, entry["champion"])
            except ChampionMovedError as error:
                wins, reason = False, f"{reason}; but {error}"
        elif checked["trained_on"]:
            reason = (
                f"{reason}; the champion was trained on {checked['trained_on']} of {checked['records']} test records"
            )
        return self._record("promoted" if wins else "held", reason, entry, outcome, comparison, checked)

    def _record(
        self,
        decision: str,
        reason: str,
        entry: Entry,
        outcome: Outcome,
        comparison: Comparison | None = None,
        checked: dict[str, Any] | None = None,
    ) -> Entry:
        """Write the decision into the challenger's run and version, and last into the ledger."""
        assert outcome.run_id is not None and outcome.model_version is not None
        facts: dict[str, Any] = {
            "kind": "decided",
            "at": now(),
            "decision": decision,
            "reason": reason,
            **{key: entry[key] for key in ("key", "prepared", "champion", "change", "warm_start", "notes", "identity")},
            "trigger": entry["reason"],
            "challenger": outcome.model_version,
            "run_id": outcome.run_id,
            "metrics": outcome.metrics,
            "comparison": comparison.as_dict() if comparison else None,
            "held_out": checked,
        }
        tags = {
            "atelier.decision": decision,
            "atelier.decision.reason": reason,
            "atelier.decision.trigger": entry["reason"],
        }
        if comparison is not None:
            tags["atelier.decision.gain"] = repr(comparison.gain)
            tags["atelier.decision.gain_interval"] = json.dumps(comparison.interval)
        with self.watch.stage("record"):
            recorder = RunRecorder(self.tracking_uri, outcome.run_id)
            recorder.log_tags(tags)
            recorder.log_json(facts, "decision.json")
            tag_version(self.tracking_uri, self.retraining.model, outcome.model_version, tags)
        self.progress("decide", 1, 1, f"{decision}: {reason}")
        return self.ledger.append(facts)
