"""The campaign file: a base conf, a space over dotted spec keys, an objective, a budget, a search, a scheduler.

Read by the driver. `load_campaign` finds every mistake before anything is started: a key that the spec does not
have, an empty range, a value that the spec would refuse, an objective that validation does not yield.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.data.layout import Layout
from pipeline.errors import SpecError
from pipeline.evaluation.metric import DEFINITIONS
from pipeline.reading import Count, Strict, apply_overrides, flatten, nearest, read_tree, validated
from pipeline.spec import RunSpec, make_spec

PREFIX = "validation/"

OBJECTIVES: dict[str, tuple[str, ...]] = {
    "rnn": ("nats_per_token", "perplexity"),
    "vae": ("nll_nats", "elbo_nats", "reconstruction_mse", "active_units", "kl_nats"),
    "gan": ("wasserstein", "frechet"),
}
"""What validation yields, by family; the first is the default, but for a GAN, whose critics' scales differ."""

FREE_PARTS = ("training.", "model.")
FIXED_KEYS = (
    "training.steps",
    "training.max_seconds",
    "training.epochs",
    "training.num_workers",
    "training.threads_per_worker",
)


class Range(Strict):
    """Numbers from `low` to `high`, drawn evenly, or evenly in their logarithm."""

    kind: Literal["uniform", "log_uniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _not_empty(self) -> Range:
        _check_range(self.low, self.high, self.kind.startswith("log"))
        return self

    def ends(self) -> tuple[Any, ...]:
        return self.low, self.high

    def holds(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


class WholeRange(Strict):
    """Whole numbers from `low` to `high`, both included."""

    kind: Literal["integer", "log_integer"]
    low: int
    high: int

    @model_validator(mode="after")
    def _not_empty(self) -> WholeRange:
        _check_range(self.low, self.high, self.kind.startswith("log"))
        return self

    def ends(self) -> tuple[Any, ...]:
        return self.low, self.high

    def holds(self, value: Any) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high


class Choice(Strict):
    """One of `values`: numbers, words or switches."""

    kind: Literal["choice"]
    values: Annotated[tuple[bool | int | float | str, ...], Field(min_length=1)]

    def ends(self) -> tuple[Any, ...]:
        return self.values

    def holds(self, value: Any) -> bool:
        return value in self.values


Dimension = Annotated[Range | WholeRange | Choice, Field(discriminator="kind")]


def _check_range(low: float, high: float, logarithmic: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise ValueError(f"from low {low} to high {high} there is nothing to draw; make low less than high")
    if logarithmic and low <= 0:
        raise ValueError(f"low {low} has no logarithm; make it more than 0, or take the kind without log")


class BudgetSpec(Strict):
    """How many trials, and how long they may take together (over all restarts; the winner's training not counted)."""

    trials: Count = 12
    hours: Annotated[float | None, Field(gt=0)] = None


class SearchSpec(Strict):
    """How values are chosen: at random, or by a tree-structured Parzen estimator (Bergstra et al. 2011) after
    `startup_trials` random ones. `start_with_conf` makes the conf's own values the first trial."""

    kind: Literal["tpe", "random"] = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0
    startup_trials: Count = 5
    start_with_conf: bool = True


class AshaSpec(Strict):
    """Asynchronous successive halving (Li et al. 2020): at `grace_steps`, and at each multiple by
    `reduction_factor`, only the best 1 / `reduction_factor` of the trials seen there go on. The first trial is never
    ended early: it is what the others are compared with."""

    kind: Literal["asha"]
    grace_steps: Count
    reduction_factor: Annotated[float, Field(gt=1)] = 3


class NoSchedulerSpec(Strict):
    """Every trial runs to its end."""

    kind: Literal["none"]


SchedulerSpec = Annotated[AshaSpec | NoSchedulerSpec, Field(discriminator="kind")]


class TrialSpec(Strict):
    """What every trial is: its length, how often it reports, its workers.

    One worker trains inside the trial's own process; several are a Ray Train run. `max_concurrent` is worked out
    from the cluster unless said.
    """

    steps: Count
    report_every: Count
    num_workers: Count = 1
    threads_per_worker: Count = 1
    max_concurrent: Count | None = None

    @model_validator(mode="after")
    def _reports(self) -> TrialSpec:
        if self.report_every > self.steps:
            raise ValueError(f"report_every {self.report_every} is more than steps {self.steps}: no report would come")
        return self


class CampaignSpec(Strict):
    """A campaign. `conf` is a path from the campaign's file; `set` overrides keys of the conf, for the trials and the
    winner; `winner` overrides keys for the winner's training alone."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
    conf: str
    set: tuple[str, ...] = ()
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    objective: str | None = None
    budget: BudgetSpec = BudgetSpec()
    search: SearchSpec = SearchSpec()
    scheduler: SchedulerSpec = NoSchedulerSpec(kind="none")
    trial: TrialSpec
    winner: tuple[str, ...] = ()


@dataclass(frozen=True)
class Campaign:
    """A campaign that holds together: its file, the conf's spec, the objective and which way is better."""

    spec: CampaignSpec
    base: RunSpec
    objective: str
    mode: Literal["min", "max"]

    def trial_spec(self, values: Mapping[str, Any]) -> RunSpec:
        """The spec of a trial: short, reporting to the schedule, without a time limit of its own."""
        trial = self.spec.trial
        fixed = {
            "training.steps": trial.steps,
            "training.max_seconds": None,
            "training.epochs": None,
            "training.num_workers": trial.num_workers,
            "training.threads_per_worker": trial.threads_per_worker,
            "training.report_every": min(trial.report_every, self.base.training.report_every),
            "training.validate_every": trial.report_every,
            # A nested trial reports to Tune with its checkpoints.
            "training.checkpoint_every": trial.report_every,
            "training.keep_checkpoints": 1,
            "training.max_failures": 0,
            # Its scheduler ends trials; one that ended by itself would count as pruned.
            "training.early_stopping": None,
        }
        return with_values(self.base, {**fixed, **values})

    def winner_spec(self, values: Mapping[str, Any]) -> RunSpec:
        """The conf with the winning values, at the conf's own length."""
        tree = with_values(self.base, values).as_dict()
        return make_spec(apply_overrides(tree, self.spec.winner), where=f"{self.spec.name}: winner")

    def own_values(self) -> dict[str, Any] | None:
        """The conf's own point of the space; None when it lies outside."""
        flat = flatten(self.base.as_dict())
        values = {key: flat[key] for key in self.spec.space}
        return values if all(d.holds(values[key]) for key, d in self.spec.space.items()) else None

    def better(self, one: float, other: float) -> bool:
        return one < other if self.mode == "min" else one > other


def with_values(base: RunSpec, values: Mapping[str, Any]) -> RunSpec:
    """`base` with dotted keys set. Raises: SpecError when the values do not fit together."""
    tree = base.as_dict()
    for key, value in values.items():
        *parents, last = key.split(".")
        node = tree
        for part in parents:
            node = node[part]
        node[last] = value
    return make_spec(tree, where=f"{base.name} with {dict(values)}")


def load_campaign(path: str | Path, overrides: Iterable[str] = ()) -> Campaign:
    """The campaign in the YAML file `path`. Raises: SpecError with every mistake."""
    path = Path(path)
    spec = validated(CampaignSpec, apply_overrides(read_tree(path, "campaign"), overrides), str(path))
    conf = path.parent / spec.conf
    base = make_spec(apply_overrides(read_tree(conf), spec.set), where=f"{conf} with the campaign's 'set'")
    mistakes = [*_wrong_keys(spec, base), *_wrong_objective(spec, base)]
    if not mistakes:
        mistakes = _wrong_values(spec, base)
    if mistakes:
        count = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "1 mistake"
        raise SpecError(f"{path}: {count}\n" + "\n".join(f"  {line}" for line in mistakes))
    objective = spec.objective or PREFIX + _default_objective(base)
    better = DEFINITIONS[objective.removeprefix(PREFIX)].better
    return Campaign(spec, base, objective, "min" if better == "lower" else "max")


def _default_objective(base: RunSpec) -> str:
    return "frechet" if base.model.family.kind == "gan" else OBJECTIVES[base.model.family.kind][0]


def _wrong_keys(spec: CampaignSpec, base: RunSpec) -> list[str]:
    known = [key for key in flatten(base.as_dict()) if key.startswith(FREE_PARTS) and key not in FIXED_KEYS]
    lines = []
    for key in spec.space:
        if key in FIXED_KEYS:
            lines.append(f"space.{key}: the campaign decides this key; set it under 'trial'")
        elif key.startswith("data."):
            lines.append(f"space.{key}: all trials share one prepared set, so data may not vary; run two campaigns")
        elif key not in known:
            close = nearest(key, known)
            hint = f"did you mean '{close}'?" if close else f"allowed: {', '.join(known)}"
            lines.append(f"space.{key}: the spec {base.name!r} has no such key; {hint}")
    return lines


def _wrong_objective(spec: CampaignSpec, base: RunSpec) -> list[str]:
    family = base.model.family.kind
    allowed = [PREFIX + key for key in OBJECTIVES[family] if DEFINITIONS[key].better is not None]
    objective = spec.objective or PREFIX + _default_objective(base)
    if objective not in allowed:
        close = nearest(objective, allowed)
        hint = f"; did you mean '{close}'?" if close else ""
        return [f"objective: {objective!r}: validation of a {family} yields {', '.join(allowed)}{hint}"]
    if objective == PREFIX + "frechet" and spec.trial.num_workers > 1:
        return [
            f"objective: {objective!r} is measured in trials of one worker; set trial.num_workers to 1, or the "
            "objective to validation/wasserstein"
        ]
    return []


def _wrong_values(spec: CampaignSpec, base: RunSpec) -> list[str]:
    """Values that the spec itself refuses, tried one at a time at the ends of each range."""
    lines = []
    for key, dimension in spec.space.items():
        for value in dimension.ends():
            try:
                with_values(base, {key: value})
            except SpecError as error:
                lines.append(f"space.{key}: {value!r}: " + " ".join(str(error).split("\n")[1:]).strip())
    return lines


def needs_extractor(campaign: Campaign, layout: Layout) -> bool:
    """Whether the objective is a distance between features. Raises: SpecError when there are none."""
    from pipeline.evaluation.features import can_extract

    if campaign.objective != PREFIX + "frechet":
        return False
    if not can_extract(layout):
        raise SpecError(
            f"{campaign.spec.name}: objective {campaign.objective!r} needs signals, from which its features are "
            "learned, and the codec makes tokens; set objective to validation/wasserstein"
        )
    return True
