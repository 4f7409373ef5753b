"""The schedule file: when something runs, and for a retraining what it trains, what sets it off and what it must gain.

Read by the driver and by the scheduler. `load_retraining` and `load_schedules` find every mistake, those of the conf
included, before anything is started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, field_validator, model_validator

from pipeline.errors import SpecError
from pipeline.operations.cron import make_trigger
from pipeline.reading import Strict, apply_overrides, nearest, read_tree, validated
from pipeline.release.policy import NO_OBJECTIVE, metrics_of
from pipeline.spec import ReleaseSpec, RunSpec, load_spec
from pipeline.spec.release import bare


class Misfire(Strict):
    """What becomes of ticks that passed while no scheduler ran, or that are later than `grace_seconds`: `run_once` runs
    the last of them as soon as it can, `skip` waits for the next; both record the others as missed."""

    policy: Literal["skip", "run_once"] = "run_once"
    grace_seconds: Annotated[float, Field(gt=0)] = 300


class LocalRuns(Strict):
    """A process of this machine: `python -m jobs retrain FILE --once`."""

    kind: Literal["local"] = "local"


class SubmitRuns(Strict):
    """A job of a Ray cluster: `python -m jobs submit retrain FILE --address ADDRESS`."""

    kind: Literal["submit"]
    address: str


class CommandRuns(Strict):
    """Another command of this machine, such as one that fetches new records; no retraining."""

    kind: Literal["command"]
    command: Annotated[tuple[str, ...], Field(min_length=1)]


AnyRuns = Annotated[LocalRuns | SubmitRuns | CommandRuns, Field(discriminator="kind")]


class ScheduleSpec(Strict):
    """When something runs, and how.

    `cron` has five fields (minute, hour, day of the month, month, weekday) or six with the second first, in
    `timezone`. As in crontab(5), weekdays count from Sunday (0 or 7) and have names, and where both days are
    restricted either suffices.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
    cron: str
    timezone: str = "UTC"
    misfire: Misfire = Misfire()
    runs: AnyRuns = LocalRuns()

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        if value not in available_timezones():
            close = nearest(value, available_timezones())
            hint = f"; did you mean {close!r}?" if close else ""
            raise ValueError(f"{value!r} is no time zone such as 'UTC' or 'Europe/Berlin'{hint}")
        return value

    @field_validator("cron")
    @classmethod
    def _fires(cls, value: str) -> str:
        trigger = make_trigger(value, "UTC")
        try:
            fires = trigger.get_next_fire_time(None, datetime.now(UTC))
        except (ValueError, OverflowError):  # it looked until the last year that a date can have
            fires = None
        if fires is None:
            raise ValueError(f"{value!r} never fires: there is no such day; change its day or its month")
        return value

    def next_times(self, count: int, after: datetime | None = None) -> list[datetime]:
        """The next `count` times after `after` (now), in the schedule's own zone."""
        trigger = make_trigger(self.cron, self.timezone)
        now = (after or datetime.now(UTC)).astimezone(ZoneInfo(self.timezone))
        found: list[datetime] = []
        previous = None
        while len(found) < count:
            previous = trigger.get_next_fire_time(previous, now)
            if previous is None:
                break
            found.append(previous)
            now = previous
        return found


class CommandSchedule(ScheduleSpec):
    """A schedule of a command."""

    runs: CommandRuns


class Trigger(Strict):
    """What sets a training off: `min_new_share`, the share of the corpus's records that are new or changed since the
    champion's data was prepared; or `max_age_days`, the champion's age."""

    min_new_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    max_age_days: Annotated[float | None, Field(gt=0)] = None


class Compare(Strict):
    """What decides, in short: a score of the test split, and what the challenger must gain, in the score's own unit,
    with its whole 95% interval. It takes the place of `release.improve` of the conf; with neither the family's
    objective decides (for a GAN, `frechet`)."""

    metric: str | None = None
    min_gain: Annotated[float, Field(ge=0)] = 0.0


class RetrainSpec(ScheduleSpec):
    """A retraining: a conf with overrides, what sets it off, how its challenger begins and what it must gain.

    `set` holds `key.path=value` overrides of the conf. `warm_start`: begin with the champion's weights, as
    `training.init_from` does (`auto`: unless some tensor would have to be made new, as in another size of network).
    """

    conf: str
    set: tuple[str, ...] = ()
    trigger: Trigger = Trigger()
    warm_start: bool | Literal["auto"] = "auto"
    compare: Compare = Compare()

    @model_validator(mode="after")
    def _trains(self) -> RetrainSpec:
        if self.runs.kind == "command":
            raise ValueError("runs.kind 'command' is for a schedule without a conf")
        return self


@dataclass(frozen=True)
class Retraining:
    """A retraining whose parts fit: the file, the conf's spec, and the policy by which its challengers are released."""

    path: Path
    spec: RetrainSpec
    base: RunSpec
    policy: ReleaseSpec

    @property
    def model(self) -> str:
        """The registered model's name."""
        assert self.base.registry.name is not None
        return self.base.registry.name


@dataclass(frozen=True)
class Schedule:
    """A schedule and the file that it is from; `retraining` unless it runs a command."""

    path: Path
    spec: ScheduleSpec
    retraining: Retraining | None = None


def load_retraining(path: str | Path, overrides: Iterable[str] = ()) -> Retraining:
    """The retraining in the YAML file `path`, its own keys overridden by `key.path=value`.

    Raises: SpecError with every mistake of the file and of the conf that it names.
    """
    path = Path(path)
    tree = apply_overrides(read_tree(path, "schedule"), overrides)
    if _kind(tree) == "command":
        raise SpecError(f"{path}: runs.kind is 'command', so there is nothing to retrain; 'atelier schedule' runs it")
    return _retraining(path, tree)


def load_schedules(paths: Sequence[str | Path]) -> list[Schedule]:
    """The schedules in `paths`. Raises: SpecError with every mistake of every file, and on a name that two have."""
    found: list[Schedule] = []
    mistakes: list[str] = []
    for path in map(Path, paths):
        try:
            tree = read_tree(path, "schedule")
            if _kind(tree) == "command":
                found.append(Schedule(path, validated(CommandSchedule, tree, str(path))))
            else:
                retraining = _retraining(path, tree)
                found.append(Schedule(path, retraining.spec, retraining))
        except SpecError as error:
            mistakes.append(str(error))
    names = [schedule.spec.name for schedule in found]
    for name in sorted({name for name in names if names.count(name) > 1}):
        files = ", ".join(str(schedule.path) for schedule in found if schedule.spec.name == name)
        mistakes.append(f"name {name!r} is that of several schedules: {files}; give each its own")
    if mistakes:
        raise SpecError("\n".join(mistakes))
    return found


def _kind(tree: Mapping[str, Any]) -> Any:
    runs = tree.get("runs")
    return runs.get("kind") if isinstance(runs, dict) else None


def _retraining(path: Path, tree: Mapping[str, Any]) -> Retraining:
    mistakes: list[str] = []
    spec: RetrainSpec | None = None
    run: RunSpec | None = None
    try:
        spec = validated(RetrainSpec, tree, str(path))
    except SpecError as error:
        mistakes.append(str(error))
    conf, changes = tree.get("conf"), tree.get("set", [])
    if isinstance(conf, str) and isinstance(changes, list) and all(isinstance(change, str) for change in changes):
        try:
            run = load_spec(path.parent / conf, changes)
        except SpecError as error:
            mistakes.append(str(error))
    policy: ReleaseSpec | None = None
    if run is not None:
        compared = tree.get("compare")
        chosen = compared.get("metric") if isinstance(compared, dict) else None
        allowed = metrics_of(run)
        if chosen is not None and chosen not in allowed:
            close = nearest(str(chosen), allowed)
            hint = f"; did you mean {close!r}?" if close else ""
            mistakes.append(
                f"{path}: compare.metric {chosen!r} does not compare two models of {run.name}: allowed "
                f"{', '.join(allowed)}{hint}"
            )
        elif chosen is None and not run.release.improve and not allowed:
            mistakes.append(f"{path}: {run.name}: {NO_OBJECTIVE}")
        elif spec is not None:
            policy = _policy(spec.compare, run, allowed)
        if run.registry.name is None:
            mistakes.append(
                f"{path}: the conf's registry.name is not set, and a champion is a registered model; set it"
            )
        if run.training.init_from is not None:
            mistakes.append(f"{path}: the conf's training.init_from is set; say warm_start in this file instead")
        if run.data.codec.kind == "bpe":
            mistakes.append(
                f"{path}: data.codec.kind 'bpe' is fitted anew on every changed corpus, and models of different tokens "
                "are not compared here; take 'bytes' or 'characters'"
            )
        if run.evaluation.split != "test":
            mistakes.append(
                f"{path}: the conf's evaluation.split is {run.evaluation.split!r}; models compare on 'test'"
            )
    if mistakes or spec is None or run is None or policy is None:
        raise SpecError("\n".join(mistakes))
    return Retraining(path, spec, run, policy)


def _policy(compare: Compare, run: RunSpec, allowed: tuple[str, ...]) -> ReleaseSpec:
    """The conf's policy, with what the schedule's `compare` says in place of its `improve`."""
    release = run.release
    if release.improve and not compare.model_fields_set:
        return release
    metric = compare.metric or next(iter(release.improve), None) or allowed[0]
    keep = {key: margin for key, margin in release.keep.items() if bare(key) != bare(metric)}
    return release.model_copy(update={"improve": {bare(metric): compare.min_gain}, "keep": keep})
