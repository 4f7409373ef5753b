"""Releases: the moves of the alias `champion`, numbered, of which each number is given to one process only.  [mlflow]

Any process that can reach the store calls this. MLflow sets an alias whatever it was before: two processes that look at
the same champion would both win. What its stores do refuse, in SQLite, other databases and behind a server alike, is a
second experiment of one name (a unique constraint). So release n of a model is an experiment named
`atelier-release/NAME/n` whose tags, written in the same transaction, say which version takes the place of which:

    look up the last number, finish it if it is open → read the alias → create number n + 1 → finish it

Between reading and creating nobody else can have moved the champion, since that would have taken number n + 1. Creating
is the decision; finishing (set the alias, write the history, close the experiment by deleting it) gives the same
result however often and by whomever it is done, so a process that died in between is not waited for, and there is no
lease: whoever comes next finishes its release. A deleted experiment keeps its name and is not shown by MLflow;
`mlflow gc` may remove it, as the history is in the tags of the registered model.

Limits: an alias that is set by hand (`mlflow`, the UI) is taken as it is found, and is not in the history. A process
that stood still between its last look and its setting of the alias, for longer than another whole release took, sets
an old champion; it sees that at once and sets the newest again, unless it is killed just then.
"""

from __future__ import annotations

import getpass
import json
import os
import random
import re
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import ChampionMovedError, RegistryError, TrackingError
from pipeline.release.champion import CHAMPION, find_champion, find_version
from pipeline.release.tracking import connect, explained, has_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

PREFIX = "atelier-release"
CLAIM = "atelier.release"
"""The tag of the experiment that holds a release, and the start of those of the registered model."""
ATTEMPTS = 20
"""Releases of others that are waited out before giving up."""


@dataclass(frozen=True)
class Release:
    """A move of the champion of `name` from version `before` (None: there was none) to `version`.

    `takes_back`: the number of the promotion that a rollback takes back. `abandoned`: its version was deleted before
    the alias was set, so nothing was moved. `at` is the time in UTC, `by` the process that decided.
    """

    number: int
    name: str
    kind: Literal["first", "promotion", "rollback"]
    version: str
    before: str | None
    reason: str
    at: str
    by: str
    takes_back: int | None = None
    abandoned: bool = False
    token: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def promote(
    tracking_uri: str, name: str, version: str, expected_champion: str | None, reason: str = ""
) -> Release | None:
    """Make `version` champion if `expected_champion` still is; None when it is champion already.

    Raises: ChampionMovedError when another is champion now, RegistryError when there is no such version,
    TrackingError.
    """
    kind: Literal["first", "promotion"] = "promotion" if expected_champion else "first"
    log = _Log(tracking_uri, name)
    for _ in range(ATTEMPTS):
        last = log.settle()
        now = find_champion(tracking_uri, name)
        if now is not None and now.version == version:
            return None
        if (now.version if now else None) != expected_champion:
            raise ChampionMovedError(
                f"{name}: the champion is {f'version {now.version}' if now else 'no version'} now and was "
                f"{f'version {expected_champion}' if expected_champion else 'none'} when version {version} was "
                "compared with it; nothing was moved"
            )
        find_version(tracking_uri, name, version)
        release = _new(last + 1, name, kind, version, expected_champion, reason)
        if log.claim(release):
            return _whole(log.finish(release))
    raise _too_busy(name)


def rollback(tracking_uri: str, name: str, reason: str = "") -> Release:
    """Take the last promotion back: the version that it replaced is champion again. A second call goes back further.

    Raises: RegistryError when there is nothing to take back, the champion was moved since by other means, or the
    version before is gone; TrackingError.
    """
    log = _Log(tracking_uri, name)
    for _ in range(ATTEMPTS):
        last = log.settle()
        now = find_champion(tracking_uri, name)
        taken = last_promotion(log.history())
        if now is None or taken is None or taken.before is None:
            raise RegistryError(
                f"{name}: there is no promotion to take back; its champion is "
                f"{f'version {now.version}, the first' if now else 'none'}"
            )
        if now.version != taken.version:
            raise RegistryError(
                f"{name}: the champion is version {now.version}, and the last promotion was of version "
                f"{taken.version}: it was moved by other means; set the alias by hand"
            )
        find_version(tracking_uri, name, taken.before)
        release = _new(last + 1, name, "rollback", taken.before, taken.version, reason)
        release = replace(release, takes_back=taken.number)
        if log.claim(release):
            return _whole(log.finish(release))
    raise _too_busy(name)


def settle(tracking_uri: str, name: str) -> None:
    """Finish the release that a process began and did not finish, if there is one. Raises: TrackingError."""
    if has_store(tracking_uri):
        _Log(tracking_uri, name).settle()


def history(tracking_uri: str, name: str) -> tuple[list[Release], Release | None]:
    """The finished releases, oldest first, and one that was begun and is not finished. Raises: TrackingError."""
    log = _Log(tracking_uri, name)
    return log.history(), log.open_release()


def last_promotion(releases: list[Release]) -> Release | None:
    """The newest move that was not taken back."""
    standing: list[Release] = []
    for release in releases:
        if release.abandoned:
            continue
        if release.kind != "rollback":
            standing.append(release)
        else:
            standing = [one for one in standing if one.number != release.takes_back]
    return standing[-1] if standing else None


class _Log:
    """The numbered releases of one model, in the store."""

    def __init__(self, tracking_uri: str, name: str) -> None:
        self.tracking_uri, self.name = tracking_uri, name
        self.client: MlflowClient = connect(tracking_uri)

    def settle(self) -> int:
        """Finish what is open; the last number that is taken, of a release that is known to be finished, or 0."""
        while True:
            claims = self._claims()
            newest = max(claims, default=0)
            if newest == 0 or claims[newest].lifecycle_stage != "active":
                return max([newest, *(release.number for release in self.history())])
            self.finish(_read(claims[newest]))

    def open_release(self) -> Release | None:
        """The newest release if it is not finished."""
        claims = self._claims()
        if not claims:
            return None
        newest = claims[max(claims)]
        return _read(newest) if newest.lifecycle_stage == "active" else None

    def history(self) -> list[Release]:
        """From the tags of the registered model; empty when there is no such model."""
        from mlflow.exceptions import MlflowException

        with explained(f"{self.tracking_uri}: the releases of {self.name!r} cannot be read"):
            try:
                tags = self.client.get_registered_model(self.name).tags
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return []
        found = [Release(**json.loads(text)) for key, text in tags.items() if key.startswith(f"{CLAIM}.")]
        return sorted(found, key=lambda release: release.number)

    def claim(self, release: Release) -> bool:
        """Take the release's number; False when another process has it."""
        from mlflow.exceptions import MlflowException

        title = f"{PREFIX}/{self.name}/{release.number:06d}"
        with explained(f"{self.tracking_uri}: release {release.number} of {self.name!r} cannot be begun"):
            try:
                self.client.create_experiment(title, tags={CLAIM: json.dumps(release.as_dict())})
                return True
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            # MLflow's client tries a request again whose answer was lost: the one that is there may be ours.
            return _read(self.client.get_experiment_by_name(title)).token == release.token

    def finish(self, release: Release) -> Release:
        """Set the alias, write the history, close the release. Done by several processes at once it is done once."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        with explained(f"{self.tracking_uri}: release {release.number} of {self.name!r} cannot be finished"):
            for attempt in range(1, ATTEMPTS):
                try:
                    return self._finish_once(release)
                except (MlflowException, SQLAlchemyError):
                    # MLflow looks whether a tag is there and then inserts it: of two processes that finish a release
                    # one may fail, and finds the tag when it comes again.
                    time.sleep(random.uniform(0, 0.02 * attempt))
            return self._finish_once(release)

    def _finish_once(self, release: Release) -> Release:
        claims = self._claims()
        ours = claims.get(release.number)
        if ours is None or ours.lifecycle_stage != "active":
            return release  # another process finished it
        if not self._has_version(release.version):
            release = replace(release, abandoned=True)
        else:
            self._set_champion(release.version)
            newest = max(found := self._claims())
            if newest > release.number and not (later := _read(found[newest])).abandoned:
                # This process stood still while others went on: theirs is the champion.
                self._set_champion(later.version)
            self._tag_versions(release)
        self.client.set_registered_model_tag(self.name, f"{CLAIM}.{release.number:06d}", json.dumps(release.as_dict()))
        self._close(ours)
        return release

    def _set_champion(self, version: str) -> None:
        self.client.set_registered_model_alias(self.name, CHAMPION, version)

    def _tag_versions(self, release: Release) -> None:
        """What became of the versions; that of a rollback is told on the one that was taken back."""
        said = {"first": "first", "promotion": "promoted", "rollback": "rolled back"}[release.kind]
        about = release.before if release.kind == "rollback" else release.version
        if about is None or not self._has_version(about):
            return
        tags = {"atelier.decision": said, "atelier.release": str(release.number)}
        if release.reason:
            tags["atelier.decision.reason"] = release.reason
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, about, key, value)

    def _has_version(self, version: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_model_version(self.name, version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _close(self, experiment: Experiment) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_experiment(experiment.experiment_id)
        except MlflowException as error:
            # Another process has just closed it.
            if self.client.get_experiment(experiment.experiment_id).lifecycle_stage == "active":
                raise TrackingError(f"{experiment.name}: cannot be closed: {error}") from error

    def _claims(self) -> dict[int, Experiment]:
        """The experiments of this model's releases by number, whether open or closed."""
        from mlflow.entities import ViewType

        ours = re.compile(rf"{PREFIX}/{re.escape(self.name)}/(\d+)")
        found: dict[int, Experiment] = {}
        token = None
        with explained(f"{self.tracking_uri}: the releases of {self.name!r} cannot be read"):
            while True:
                page = self.client.search_experiments(
                    view_type=ViewType.ALL, filter_string=f"name LIKE '{PREFIX}/{self.name}/%'", page_token=token
                )
                for experiment in page:
                    if match := ours.fullmatch(experiment.name):
                        found[int(match[1])] = experiment
                token = page.token
                if not token:
                    return found


def _new(
    number: int,
    name: str,
    kind: Literal["first", "promotion", "rollback"],
    version: str,
    before: str | None,
    reason: str,
) -> Release:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = "unknown"
    by = f"{user}@{os.uname().nodename}, process {os.getpid()}"
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Release(number, name, kind, version, before, reason[:4000], at, by, token=uuid.uuid4().hex)


def _read(experiment: Experiment) -> Release:
    return Release(**json.loads(experiment.tags[CLAIM]))


def _whole(release: Release) -> Release:
    if release.abandoned:
        raise RegistryError(f"{release.name}: version {release.version} was deleted meanwhile; nothing was moved")
    return release


def _too_busy(name: str) -> TrackingError:
    return TrackingError(f"{name}: {ATTEMPTS} other releases came in between; look at 'atelier release show {name}'")
