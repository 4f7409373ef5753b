"""The rules of health: when a report or a validation of a training gives a warning, by name and with the numbers.

Plain Python on values that were reduced over all ranks, so every rank finds the same. What rules remember is in the
run's `Course`. Every rule is stated where it is checked; what to do about a warning is in `kinds`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.training.course import Course
from pipeline.training.kinds import KINDS

WINDOW = 20
"""Reports of which the running median is taken."""
FEWEST = 5
"""Reports before a gradient norm is compared with their median; and reports in a row of a rising loss."""
GRADIENT_FACTOR, WEIGHT_FACTOR = 30.0, 10.0
"""How many times the median a norm must be to explode."""
LARGEST_FACTOR = 3.0
"""And how many times the largest: a hinge loss's gradient is nothing while the critic tells all apart."""
LOST_SHARE = 0.25
"""Of what the loss had gained since the first report, how much must be lost again."""
VANISHED = 1e-5
"""A generator's gradient norm relative to its weights' norm."""
COLLAPSED_NATS = 0.1
VARIETY_SHARE, CONTRAST_SHARE = 0.1, 0.05
LAGGING_SHARE, MEMORISED_SHARE = 0.25, 0.6
IN_A_ROW = 2
"""Validations (or reports) in a row in which a sign of a family must be bad."""
EARLIEST = 0.25
"""The share of the training before which signs of a family are not judged: all are bad when it begins."""
PARTED_SHARE, PARTED_FOR = 0.02, 3
"""How far the held-out objective must be above its lowest, and for how many validations in a row."""

GRADIENT, WEIGHTS = "_gradient_norm", "_weight_norm"

Found = Iterator[tuple[str, str]]
"""Kinds of warnings with what was seen."""


@dataclass(frozen=True)
class HealthWarning:
    """A warning of one kind: what was seen when it was first given, at `step`; when last, and how often."""

    kind: str
    message: str
    step: int
    last_step: int
    times: int = 1

    def in_words(self) -> str:
        """A line for a terminal."""
        kind = KINDS[self.kind]
        return f"{kind.title} ({self.kind}) at step {self.step:,}: {self.message}. {kind.advice}"

    def as_dict(self) -> dict[str, Any]:
        """With its title, meaning and advice, for the outcome and the page."""
        return {**asdict(self), **asdict(KINDS[self.kind])}


def note(course: Course, kind: str, message: str, step: int) -> HealthWarning:
    """Record that a rule holds at `step`; `times` is 1 when it is the first time."""
    known = course.warnings.get(kind)
    warning = HealthWarning(kind, message, step, step)
    if known is not None:
        warning = HealthWarning(kind, known["message"], known["step"], step, known["times"] + 1)
    course.warnings[kind] = asdict(warning)
    return warning


def warnings_of(course: Course) -> list[dict[str, Any]]:
    """All warnings of a run so far, by the step at which they were first given."""
    found = [HealthWarning(**values) for values in course.warnings.values()]
    return [warning.as_dict() for warning in sorted(found, key=lambda one: one.step)]


class Watch:
    """Judges a training's reports and validations; all ranks call it with the same values."""

    def __init__(self, course: Course) -> None:
        self.course = course

    def begin(self, weight_norms: Mapping[str, float], annealed_share: float = 1.0) -> None:
        """The norms of the weights before the first step, `health/PHASE_weight_norm`, and how far the annealing has
        come (`GenerativeModel.annealed_share`); known already when resumed."""
        self.course.seen.setdefault("annealed_share", [annealed_share])
        for name, value in weight_norms.items():
            if name not in self.course.seen:
                self.course.remember(name, value, WINDOW)

    def report(self, step: int, metrics: Mapping[str, float], annealed_share: float = 1.0) -> list[HealthWarning]:
        """What holds of the means since the last report, `train/…` and `health/…`, and how far the annealing of what
        the loss is made of has come by now."""
        before = self.course.seen.get("annealed_share", [annealed_share])[-1]
        self.course.remember("annealed_share", annealed_share, 1)
        found = [*self._exploding(metrics), *self._rising(metrics, before), *self._vanishing(metrics)]
        return [note(self.course, kind, message, step) for kind, message in found]

    def validation(
        self,
        step: int,
        progress: float,
        objective: float,
        metrics: Mapping[str, float],
        scores: Mapping[str, float],
        signs: Mapping[str, float],
    ) -> list[HealthWarning]:
        """What holds of the held-out `objective` (lower is better), beside the means `train/…`, and, after a quarter of
        the training, of held-out scores and vital signs."""
        found = [*self._parting(step, objective, metrics)]
        if progress >= EARLIEST:
            found += [*self._autoencoder({**scores, **signs}), *self._adversaries(signs)]
        return [note(self.course, kind, message, step) for kind, message in found]

    def _exploding(self, metrics: Mapping[str, float]) -> Found:
        """A gradient's norm (the mean since the last report) above 30 times the median of the last 20 reports, of which
        there are 5, and 3 times the largest; or the weights' norm above 10 times its median and 3 times its largest,
        the start counted as a report."""
        for ending, kind, factor, fewest in (
            (GRADIENT, "exploding_gradient", GRADIENT_FACTOR, FEWEST),
            (WEIGHTS, "exploding_weights", WEIGHT_FACTOR, 1),
        ):
            for name, value in metrics.items():
                if not (name.startswith("health/") and name.endswith(ending)):
                    continue
                known = self.course.seen.get(name, [])
                median = statistics.median(known) if known else 0.0
                if len(known) >= fewest and median > 0 and value > max(factor * median, LARGEST_FACTOR * max(known)):
                    what = name.removeprefix("health/").replace("_", " ")
                    yield (
                        kind,
                        f"the {what} is {value:.3g}, over {factor:g} times {median:.3g}, its median of {len(known)} "
                        f"{'reports' if len(known) > 1 else 'report'} before",
                    )
                self.course.remember(name, value, WINDOW)

    def _rising(self, metrics: Mapping[str, float], annealed_share: float) -> Found:
        """Five reports in a row in which the loss is above its lowest by a quarter of what it had gained since the
        first, and by three times the median step from report to report. Not while a KL term is annealed, which it
        was for a part of the steps where the share at the report before is below 1, nor of adversaries, whose losses
        say nothing."""
        if "train/loss" not in metrics:
            return
        course, loss = self.course, metrics["train/loss"]
        if annealed_share < 1.0:
            for name in ("loss", "first_loss", "lowest_loss"):
                course.seen.pop(name, None)
            return
        before = course.seen.get("loss", [])
        first = course.seen.get("first_loss", [loss])[0]
        lowest = min(course.seen.get("lowest_loss", [loss])[0], loss)
        course.remember("loss", loss, WINDOW)
        course.seen |= {"first_loss": [first], "lowest_loss": [lowest]}
        if len(before) < FEWEST:
            return
        usual = statistics.median(abs(b - a) for a, b in zip(before[:-1], before[1:], strict=True))
        margin = max(LOST_SHARE * (first - lowest), 3 * usual, 1e-3 * abs(lowest))
        if course.in_a_row("loss_rising", loss > lowest + margin) >= FEWEST:
            yield (
                "loss_rising",
                f"the training loss is {loss:.4g} and was as low as {lowest:.4g}: {FEWEST} reports in a row were over "
                f"{margin:.3g} above that",
            )

    def _vanishing(self, metrics: Mapping[str, float]) -> Found:
        """Two reports in a row in which a generator's gradient norm is below 1e-5 of its weights' norm."""
        gradient, weights = (metrics.get(f"health/generator{ending}") for ending in (GRADIENT, WEIGHTS))
        if gradient is None or weights is None:
            return
        if self.course.in_a_row("vanished", gradient < VANISHED * weights) >= IN_A_ROW:
            yield "dead_generator", f"the generator's gradient norm is {gradient:.2g}, its weights' {weights:.3g}"

    def _parting(self, step: int, objective: float, metrics: Mapping[str, float]) -> Found:
        """Three validations in a row in which the objective is over 2% above its lowest, while the training loss is
        below what it was then. Of adversaries there is no such loss."""
        loss = metrics.get("train/loss")
        if loss is None or not math.isfinite(objective):
            return
        lowest, then, at = self.course.seen.get("lowest_objective", [math.inf, loss, step])
        if objective < lowest:
            lowest, then, at = objective, loss, step
        self.course.seen["lowest_objective"] = [lowest, then, at]
        excess = objective - lowest
        parted = excess > PARTED_SHARE * abs(lowest) and loss < then
        if self.course.in_a_row("parting", parted) >= PARTED_FOR:
            yield (
                "overfitting",
                f"the held-out objective is {objective:.4g}, {excess / abs(lowest):.1%} above its lowest ({lowest:.4g} "
                f"at step {at:,.0f}), for {PARTED_FOR} validations, while the training loss fell from {then:.4g} to "
                f"{loss:.4g}",
            )

    def _autoencoder(self, signs: Mapping[str, float]) -> Found:
        """Two validations in a row, after the KL's annealing, with less than 0.1 nats of KL or without a unit that is
        active (whose posterior mean varies over examples by more than 0.01: Burda et al. 2016, section 5.3)."""
        if "kl_nats" not in signs or signs.get("kl_weight_share", 1.0) < 1:
            return
        kl, active = signs["kl_nats"], signs["active_units"]
        if self.course.in_a_row("collapsed", kl < COLLAPSED_NATS or active < 1) >= IN_A_ROW:
            yield "posterior_collapse", f"the KL is {kl:.3g} nats, and {active:.0f} units are active"

    def _adversaries(self, signs: Mapping[str, float]) -> Found:
        """Two validations in a row in which: examples from fixed noise have less than 5% of the contrast of real ones
        (blank); or, not blank, their mean distance, or the median distance to the nearest other, is below 10% of that
        of real ones; the critic scores a training example higher in less than 25% of the pairs; or it scores held-out
        examples over 60% of the way from training examples to generated ones."""
        if "diversity_share" not in signs:
            return
        contrast = signs.get("contrast_share", 1.0)
        blank = contrast < CONTRAST_SHARE
        mean, nearest = signs["diversity_share"], signs["nearest_share"]
        collapsed = not blank and (mean < VARIETY_SHARE or nearest < VARIETY_SHARE)
        wins, learnt = signs["critic_win_share"], signs["critic_overfit_share"]
        row = self.course.in_a_row
        if row("blank", blank) >= IN_A_ROW:
            yield "dead_generator", f"generated examples have {contrast:.1%} of the contrast of real ones"
        if row("mode_collapse", collapsed) >= IN_A_ROW:
            yield (
                "mode_collapse",
                f"generated examples lie {mean:.1%} as far apart as real ones, and {nearest:.1%} as far from the "
                "nearest other",
            )
        if row("critic_lag", wins < LAGGING_SHARE) >= IN_A_ROW:
            yield "critic_lag", f"the critic scores the real example higher in {wins:.1%} of the pairs"
        if row("critic_overfitting", learnt > MEMORISED_SHARE) >= IN_A_ROW:
            yield (
                "critic_overfitting",
                f"the critic scores held-out examples {learnt:.0%} of the way from training examples to generated ones",
            )
