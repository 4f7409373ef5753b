"""The end of a contest: what the gate decided is recorded, and what it promotes becomes champion.

Runs in the driver. The order is such that a process that is killed leaves no move without its reason: first the
decision goes into the challenger's run, then the alias moves (`releases`), last the version is tagged and described.
Each can be done again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ChampionMovedError
from pipeline.release.champion import describe_version, find_version, tag_version
from pipeline.release.gate import Decision, Outcome
from pipeline.release.recorder import RunRecorder
from pipeline.release.releases import promote
from pipeline.release.tracking import read_artifact

Decided = Literal["first", "promoted", "held", "rejected"]
DECIDED: dict[Outcome, Decided] = {"hold": "held", "reject": "rejected"}
CARD = "card.md"
"""The model card in the run, whole."""
SECTION = "## The gate's decision"


@dataclass(frozen=True)
class Concluded:
    """What became of a challenger. `release` is the number of the move, None when this call moved nothing."""

    decision: Decided
    reason: str
    release: int | None = None


def conclude(
    tracking_uri: str,
    name: str,
    version: str,
    champion: str | None,
    decision: Decision,
    note: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Concluded:
    """Record `decision` on `version`, compared with the version `champion`, and promote it where that is the outcome.

    A champion that moved meanwhile turns a promotion into a hold. `note` is added to the reason of what is not
    promoted; `facts` go into the run's file `gate/….json` beside the table. Raises: RegistryError, TrackingError.
    """
    known = find_version(tracking_uri, name, version)
    file = f"gate/{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}.json"
    about = {"name": name, "version": version, "champion": champion, **(facts or {}), **decision.as_dict()}
    recorder = RunRecorder(tracking_uri, known.run_id) if known.run_id else None
    if recorder is not None:
        recorder.log_json(about, file)
    concluded = _moved(tracking_uri, name, version, champion, decision, note)
    if recorder is not None:
        recorder.log_json({**about, "decision": vars(concluded)}, file)
        recorder.log_tags({"atelier.decision": concluded.decision, "atelier.decision.reason": concluded.reason})
    tags = {"atelier.gate": decision.outcome, "atelier.gate.compared_with": champion or "none"}
    if concluded.release is None and not _stands(tracking_uri, name, version):
        # What a release writes on the version that it made champion stays.
        tags |= {"atelier.decision": concluded.decision, "atelier.decision.reason": concluded.reason}
    if decision.comparison is not None:
        tags["atelier.decision.gain"] = repr(decision.comparison.gain)
        tags["atelier.decision.gain_interval"] = repr(decision.comparison.interval)
    tag_version(tracking_uri, name, version, tags)
    section = described(decision, concluded, champion)
    card = read_artifact(tracking_uri, known.run_id, CARD) if known.run_id else None
    above = (card.decode() if card is not None else known.description).partition(SECTION)[0].rstrip()
    if recorder is not None:
        recorder.log_text(f"{above}\n\n{section}", CARD)
    describe_version(tracking_uri, name, version, f"{above[: 4900 - len(section)]}\n\n{section}")
    return concluded


def described(decision: Decision, concluded: Concluded, champion: str | None) -> str:
    """The section of a card: outcome, reason and table."""
    against = f"compared with version {champion}" if champion else "with no champion to compare with"
    reason = concluded.reason if len(concluded.reason) < 1500 else concluded.reason[:1500] + "…"
    return f"{SECTION}\n\n**{concluded.decision}**, {against}: {reason}\n\n{decision.table()}\n"


def _moved(
    tracking_uri: str, name: str, version: str, champion: str | None, decision: Decision, note: str
) -> Concluded:
    noted = f"{decision.reason}; {note}" if note else decision.reason
    if decision.outcome != "promote":
        return Concluded(DECIDED[decision.outcome], noted)
    try:
        release = promote(tracking_uri, name, version, champion, decision.reason)
    except ChampionMovedError as error:
        return Concluded("held", f"{decision.reason}; but {error}")
    if release is None:
        # By this contest before it was broken off, or by another at the same time.
        return Concluded("promoted" if champion else "first", decision.reason)
    return Concluded("promoted" if champion else "first", decision.reason, release.number)


def _stands(tracking_uri: str, name: str, version: str) -> bool:
    """Whether a release made this version champion at some time."""
    return "atelier.release" in find_version(tracking_uri, name, version).tags
