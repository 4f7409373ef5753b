"""Retraining: train a challenger when the corpus or time has moved on, compare it with the champion, promote or hold.

Runs in the driver. Whether there is something to do is decided without Ray. Each step is in the ledger before the next
begins, and each can be done again: a call after a crash goes on with the decision that was open, trains nothing twice
and decides once.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import LedgerError
from pipeline.operations.contest import Contest, now, this_process
from pipeline.operations.decisions import identity, make_plan, open_base_corpus
from pipeline.operations.ledger import Entry, Ledger
from pipeline.operations.schedule_file import Retraining
from pipeline.outcome import Stopwatch
from pipeline.progress import Progress, silent
from pipeline.release.champion import find_champion
from pipeline.release.releases import settle
from pipeline.release.tracking import resolve_uri
from pipeline.storage import Store, open_store
from pipeline.workflow import finished_outcome


@dataclass
class RetrainOutcome:
    """What `atelier retrain` tells in its last line.

    `decision`: `unchanged` (nothing was trained), `first` (there was no champion), `promoted`, `held` or `rejected`.
    """

    name: str
    decision: str
    reason: str
    model: str
    champion: str | None = None
    challenger: str | None = None
    run_id: str | None = None
    prepared: str | None = None
    change: dict[str, Any] | None = None
    comparison: dict[str, Any] | None = None
    held_out: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    entry: int | None = None
    ledger: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps(vars(self), ensure_ascii=False)


def plan_retraining(retraining: Retraining) -> dict[str, Any]:
    """What `retrain_job` would do and why, without doing or writing any of it: what `--dry-run` prints."""
    store = open_store(retraining.base.storage)
    ledger = Ledger(store, retraining.spec.name)
    open_entry = _open_entry(ledger)
    if open_entry is not None:
        return {
            "name": retraining.spec.name,
            "would": "continue",
            "reason": f"entry {open_entry['number']} began a decision that was not made: {open_entry['reason']}",
            **{key: open_entry[key] for key in ("prepared", "champion", "change")},
        }
    champion = find_champion(resolve_uri(store, retraining.base.tracking.uri), retraining.model)
    plan = make_plan(retraining, store, champion, ledger.entries)
    would = "train" if plan.train else "nothing"
    return {"name": retraining.spec.name, "would": would, "reason": plan.reason, **plan.figures()}


def retrain_job(
    retraining: Retraining, progress: Progress = silent, address: str | None = None, since: float | None = None
) -> RetrainOutcome:
    """Decide, and train, compare and promote where that is called for; or finish what an earlier call began.

    Raises: LedgerError when the ledger was edited or another process is at it, before anything is done; and what
    preparing, training and scoring raise: the same call then goes on.
    """
    watch = Stopwatch(since)
    store = open_store(retraining.base.storage)
    store.check_writable()
    ledger = Ledger(store, retraining.spec.name)
    tracking_uri = resolve_uri(store, retraining.base.tracking.uri)
    settle(tracking_uri, retraining.model)
    entry = _open_entry(ledger)
    if entry is not None:
        _check_not_running(entry, ledger)
        entry = _resumed(retraining, store, ledger, entry)
    plan = None
    if entry is None:
        progress("decide", 0, None, "looking at the corpus and the champion")
        with watch.stage("decide"):
            champion = find_champion(tracking_uri, retraining.model)
            plan = make_plan(retraining, store, champion, ledger.entries)
        if not plan.train:
            written = ledger.append({"kind": "unchanged", "at": now(), "reason": plan.reason, **plan.figures()})
            return _outcome(retraining, "unchanged", written, ledger, watch)
        progress("decide", 1, 1, plan.reason)
    from pipeline.ray_session import ray_session

    progress("start", 0, None, "starting Ray")
    with ray_session(address), tempfile.TemporaryDirectory() as temporary:
        contest = Contest(retraining, store, ledger, tracking_uri, Path(temporary), progress, address, watch)
        written = contest.run(entry, plan)
    return _outcome(retraining, written["decision"], written, ledger, watch)


def _outcome(retraining: Retraining, decision: str, entry: Entry, ledger: Ledger, watch: Stopwatch) -> RetrainOutcome:
    known = {key: entry[key] for key in RetrainOutcome.__dataclass_fields__ if key in entry}
    known |= {"decision": decision, "name": retraining.spec.name, "model": retraining.model}
    return RetrainOutcome(**known, entry=entry["number"], ledger=ledger.path, seconds=watch.with_total())


# --- what was begun -------------------------------------------------------------------------------------------


def _open_entry(ledger: Ledger) -> Entry | None:
    """The newest entry that began a decision, if that was not made or given up."""
    for entry in reversed(ledger.entries):
        if entry["kind"] in ("decided", "abandoned"):
            return None
        if entry["kind"] in ("begun", "resumed"):
            return entry
    return None


def _check_not_running(entry: Entry, ledger: Ledger) -> None:
    """Raises: LedgerError when the process that wrote `entry` still runs on this machine."""
    import psutil

    process = entry["process"]
    if process["host"] != os.uname().nodename or process["id"] == os.getpid():
        return
    try:
        runs = abs(psutil.Process(process["id"]).create_time() - process["started_at"]) < 1
    except psutil.NoSuchProcess:
        return
    if runs:
        raise LedgerError(
            f"{ledger.path}: process {process['id']} is at this retraining since {entry['at']}; wait for it to end"
        )


def _resumed(retraining: Retraining, store: Store, ledger: Ledger, entry: Entry) -> Entry | None:
    """`entry` taken up by this process; or None, and given up in the ledger, when it can no longer be finished."""
    from pipeline.data.manifest import prepared_key

    if finished_outcome(store, entry["key"]) is None:
        wrong = None
        if entry["identity"] != identity(retraining):
            wrong = "the conf was changed since"
        elif prepared_key(retraining.base, open_base_corpus(retraining.base)) != entry["prepared"]:
            wrong = "the corpus was changed since"
        if wrong is not None:
            ledger.append({"kind": "abandoned", "at": now(), "key": entry["key"], "reason": wrong})
            return None
    content = {key: value for key, value in entry.items() if key not in ("number", "previous", "sha256")}
    return ledger.append({**content, "kind": "resumed", "at": now(), "process": this_process()})
