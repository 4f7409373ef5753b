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

from pipeline.errors import TransferError
from pipeline.evaluation.metric import Score
from pipeline.operations.decisions import Plan, held_out, identity
from pipeline.operations.ledger import Entry, Ledger
from pipeline.operations.schedule_file import Retraining
from pipeline.outcome import Outcome, Stopwatch
from pipeline.progress import Progress
from pipeline.release.champion import Champion, find_version
from pipeline.release.conclusion import Concluded, conclude
from pipeline.release.finding import fetch
from pipeline.release.gate import Decision, Evidence, decide
from pipeline.release.recorder import RunRecorder
from pipeline.spec.release import bare
from pipeline.storage import Store
from pipeline.workflow import finished_outcome, train_job

if TYPE_CHECKING:
    from pipeline.data.prepared import Prepared
    from pipeline.evaluation.compare import Measured
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
        # Measured before anything is trained: a champion that cannot be compared is an error that costs nothing.
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
        """The model to begin with. Raises: TransferError when it must be the champion, whose weights do not fit."""
        wish = self.retraining.spec.warm_start
        if champion is None or wish is False:
            return None
        from pipeline.inheriting import donor_of
        from pipeline.models.surgery import inherit

        donor = donor_of(fetch(champion.model_uri, self.tracking_uri, self.folder / "donor"))
        try:
            taken = inherit(self.retraining.base, prepared.layout, prepared.codec.meanings(), donor)[1]
            wrong = taken.in_words() if taken.names("new") else None
        except TransferError as error:
            wrong = str(error)
        if wrong is None:
            return champion.model_uri
        if wish is True:
            raise TransferError(
                f"{self.retraining.path}: warm_start from {champion.model_uri}: {wrong}; set warm_start to 'auto' or "
                "false to begin with new weights"
            )
        notes.append(f"begins with new weights, since those of {champion.model_uri} do not fit: {wrong}")
        return None

    def _train(self, entry: Entry) -> Outcome:
        base = self.retraining.base
        training = base.training.model_copy(update={"init_from": entry["warm_start"]})
        spec: RunSpec = base.model_copy(update={"training": training})
        tags = {
            "atelier.retraining": self.retraining.spec.name,
            "atelier.compared_with": str(entry["champion"]),
            "atelier.init_from": str(entry["warm_start"]),
        }
        return train_job(spec, self.progress, self.address, key=entry["key"], tags=tags)

    def _measured(self, prepared: Prepared, model_uri: str) -> dict[str, Measured]:
        from pipeline.evaluation.evaluate import measure

        policy = self.retraining.policy
        keys = [bare(key) for key in (*policy.improve, *policy.keep)]
        bundle = fetch(model_uri, self.tracking_uri, self.folder / model_uri.rsplit("/", 1)[-1])
        with self.watch.stage("compare"):
            return measure(self.retraining.base, prepared, bundle, keys, self.progress)

    def _evidence(self, entry: Entry, outcome: Outcome, measured: dict[str, Measured]) -> Evidence:
        """What the challenger's training found of it, and what was measured in blocks."""
        assert outcome.model_version is not None
        scores = self.store.read_json("runs", entry["key"], "scores.json")
        findings = find_version(self.tracking_uri, self.retraining.model, outcome.model_version).findings
        return Evidence({key: Score.from_dict(values) for key, values in scores.items()}, measured, findings)

    def _decide_first(self, entry: Entry, outcome: Outcome) -> Entry:
        """Without a champion, limits and findings decide; whoever became champion meanwhile was not compared."""
        decision = decide(self.retraining.policy, self._evidence(entry, outcome, {}), None)
        concluded = self._conclude(outcome, None, decision)
        return self._record(concluded, decision, entry, outcome)

    def _decide(self, entry: Entry, outcome: Outcome, prepared: Prepared, champion: dict[str, Measured]) -> Entry:
        from pipeline.data.prepared import find_prepared

        assert outcome.model_uri is not None
        challenger = self._evidence(entry, outcome, self._measured(prepared, outcome.model_uri))
        decision = decide(self.retraining.policy, challenger, Evidence(measured=champion))
        then = entry["champion_prepared"]
        checked = held_out(prepared, find_prepared(self.store, then) if then else None)
        note = ""
        if checked.trained_on:
            note = f"the champion was trained on {checked.trained_on} of {checked.records} test records"
        concluded = self._conclude(outcome, entry["champion"], decision, note)
        return self._record(concluded, decision, entry, outcome, asdict(checked))

    def _conclude(self, outcome: Outcome, champion: str | None, decision: Decision, note: str = "") -> Concluded:
        assert outcome.model_version is not None
        with self.watch.stage("record"):
            return conclude(
                self.tracking_uri, self.retraining.model, outcome.model_version, champion, decision, note=note
            )

    def _record(
        self,
        concluded: Concluded,
        decision: Decision,
        entry: Entry,
        outcome: Outcome,
        checked: dict[str, Any] | None = None,
    ) -> Entry:
        """Write what was decided into the challenger's run, and last into the ledger."""
        assert outcome.run_id is not None and outcome.model_version is not None
        facts: dict[str, Any] = {
            "kind": "decided",
            "at": now(),
            "decision": concluded.decision,
            "reason": concluded.reason,
            **{key: entry[key] for key in ("key", "prepared", "champion", "change", "warm_start", "notes", "identity")},
            "trigger": entry["reason"],
            "challenger": outcome.model_version,
            "run_id": outcome.run_id,
            "metrics": outcome.metrics,
            "gate": decision.as_dict(),
            "comparison": decision.comparison.as_dict() if decision.comparison else None,
            "held_out": checked,
        }
        with self.watch.stage("record"):
            recorder = RunRecorder(self.tracking_uri, outcome.run_id)
            recorder.log_tags({"atelier.decision.trigger": entry["reason"]})
            recorder.log_json(facts, "decision.json")
        self.progress("decide", 1, 1, f"{concluded.decision}: {concluded.reason}")
        return self.ledger.append(facts)
