"""The ledger of a campaign: what was tried, how far it came and what it scored, in the storage.

Written by the driver at every report, so that a campaign whose driver was killed goes on where it was. Tune's own
experiment state is saved every ten seconds at best: restored from it, finished trials ran again and newer ones were
dropped, and the schedulers' rungs and the searcher's history may be lost. Here each trial has a number and a file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.errors import StorageError
from pipeline.storage import Store

FOLDER = "campaigns"
Status = Literal["running", "finished", "pruned", "failed"]


@dataclass
class Trial:
    """One trial. `reports` are (step, objective); `seconds` are from its start to its end, `training_seconds` those
    in the training loop; the difference is what the framework took."""

    number: int
    values: dict[str, Any]
    status: Status = "running"
    attempt: int = 1
    run_id: str | None = None
    reports: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    training_seconds: float = 0.0
    process: str | None = None
    error: str | None = None

    @property
    def steps(self) -> int:
        return self.reports[-1][0] if self.reports else 0

    @property
    def objective(self) -> float | None:
        """The last value reported."""
        return self.reports[-1][1] if self.reports else None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Trial:
        return cls(**{**values, "reports": [(int(step), float(value)) for step, value in values["reports"]]})


class Ledger:
    """The folder of one campaign; the only writer is the campaign's driver."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store.child(FOLDER, key), key

    def state(self) -> dict[str, Any]:
        """What the campaign's own file says; empty when it has not begun."""
        if not self.store.exists("campaign.json"):
            return {}
        state: dict[str, Any] = self.store.read_json("campaign.json")
        return state

    def update(self, **values: Any) -> None:
        self.store.write_json({**self.state(), **values}, "campaign.json")

    def write(self, trial: Trial) -> None:
        self.store.write_json(asdict(trial), "trials", f"{trial.number:04d}.json")

    def trials(self) -> list[Trial]:
        """All trials by their number. Raises: StorageError on a file that was edited or cut short."""
        found = []
        # A driver that was killed may leave the temporary file of a write.
        for name in (name for name in self.store.list_names("trials") if name.endswith(".json")):
            try:
                found.append(Trial.from_dict(self.store.read_json("trials", name)))
            except (TypeError, KeyError, ValueError) as error:
                raise StorageError(
                    f"{self.store.path('trials', name)}: not a trial as this campaign wrote it ({error}); delete "
                    "the file to run that trial again"
                ) from None
        return found


def campaign_key(store: Store, name: str, identity: dict[str, Any]) -> str:
    """The folder name of a campaign: that of the newest unfinished one with this identity, or a new one."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    stem = f"{name}-{digest}-"
    numbers = [int(n.removeprefix(stem)) for n in store.list_names(FOLDER) if n.startswith(stem)]
    newest = max(numbers, default=0)
    if newest and Ledger(store, f"{stem}{newest}").state().get("status") != "finished":
        return f"{stem}{newest}"
    return f"{stem}{newest + 1}"
