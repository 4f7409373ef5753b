"""The gate: whether a challenger is promoted, held or rejected, by the policy of the spec.

Plain Python, in the driver: scores, blocks and findings in, a decision with the table behind it out. All of what must
improve has to improve, so that several required scores make a wrong promotion rarer than one does, not more frequent
(an intersection-union test: Berger 1982, Technometrics 24:295); what breaks a limit is rejected whatever else it gains.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.evaluation.compare import Comparison, Measured
from pipeline.evaluation.metric import FEWEST_BLOCKS, Interval, Score
from pipeline.evaluation.paired import Pair, pair, pair_scores
from pipeline.spec import Limit, ReleaseSpec
from pipeline.spec.release import bare

Outcome = Literal["promote", "hold", "reject"]
State = Literal["met", "not met", "broken", "unknown"]

WORDS_OF_FINDINGS = {
    "copies": "it gives back training examples",
    "collapsed": "it makes few different examples",
    "blurred": "its examples are blurred",
    "noise": "its examples are noise",
}


@dataclass(frozen=True)
class Evidence:
    """What is known of a model: its scores (keys with or without the split), those of them that were measured in
    blocks, and what the evaluation found wrong with it (None: it did not look)."""

    scores: Mapping[str, Score] = field(default_factory=dict)
    measured: Mapping[str, Measured] = field(default_factory=dict)
    findings: Collection[str] | None = None

    def score(self, key: str) -> Score | None:
        """A score by its key without the split; of those in blocks first."""
        for known in ({bare(name): one.score for name, one in self.measured.items()}, self._bare_scores()):
            if key in known:
                return known[key]
        return None

    def blocks(self, key: str) -> Measured | None:
        return {bare(name): one for name, one in self.measured.items()}.get(key)

    def _bare_scores(self) -> dict[str, Score]:
        return {bare(name): one for name, one in self.scores.items()}


@dataclass(frozen=True)
class Rule:
    """One row of the table: what the policy asks, what was seen, and whether that meets it, in words."""

    kind: Literal["improve", "keep", "limit", "finding"]
    score: str
    wanted: str
    state: State
    words: str
    value: float | None = None
    interval: Interval | None = None
    comparison: Comparison | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "comparison": self.comparison.as_dict() if self.comparison else None}


@dataclass(frozen=True)
class Decision:
    """What the gate says of a challenger, and why."""

    outcome: Outcome
    reason: str
    rules: tuple[Rule, ...]
    findings: tuple[str, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Of JSON types."""
        return {
            **vars(self),
            "rules": [rule.as_dict() for rule in self.rules],
            "findings": self.findings and list(self.findings),
        }

    @property
    def comparison(self) -> Comparison | None:
        """Of the first score that must improve."""
        return next((rule.comparison for rule in self.rules if rule.kind == "improve"), None)

    def table(self) -> str:
        """The rules as a table in Markdown."""
        lines = ["| rule | score | wanted | champion | challenger | gain (95%) | |", "|---|---|---|---|---|---|---|"]
        for rule in self.rules:
            seen = rule.comparison
            cells = [rule.kind, f"`{rule.score}`", rule.wanted]
            if seen is not None:
                cells += [f"{seen.champion:.5g}", f"{seen.challenger:.5g}", f"{seen.gain:.4g} {_ends(seen.interval)}"]
            else:
                cells += ["", "" if rule.value is None else f"{rule.value:.5g} {_ends(rule.interval)}".rstrip(), ""]
            lines.append("| " + " | ".join([*cells, rule.state]) + " |")
        return "\n".join(lines)


def decide(policy: ReleaseSpec, challenger: Evidence, champion: Evidence | None, seed: int = 0) -> Decision:
    """Apply the policy. Without a champion only limits and findings count: the first model is promoted or not.

    A rule whose score is missing, or has no interval, is not met. Raises: ComparisonError when a score of the two
    models was taken in different ways.
    """
    found_wrong = None if challenger.findings is None else tuple(sorted(challenger.findings))
    # What the evaluation of this model did not look for says nothing; a limit on its score holds the model instead.
    rules = [_finding(name, name in found_wrong) for name in policy.reject] if found_wrong is not None else []
    rules += [_limit(bare(key), limit, challenger.score(bare(key))) for key, limit in policy.limits.items()]
    if champion is not None:
        assert policy.improve, "policy_of fills in the objective"
        for kind, margins in (("improve", policy.improve), ("keep", policy.keep)):
            for key, margin in margins.items():
                found = _paired(bare(key), champion, challenger, policy.repeats, seed)
                rules.append(
                    _improve(bare(key), margin, found) if kind == "improve" else _keep(bare(key), margin, found)
                )
    return Decision(*_outcome(rules), tuple(rules), found_wrong)


def _outcome(rules: Sequence[Rule]) -> tuple[Outcome, str]:
    for outcome, states in (("reject", ("broken",)), ("hold", ("not met", "unknown"))):
        words = [rule.words for rule in rules if rule.state in states]
        if words:
            return outcome, "; ".join(words)  # type: ignore[return-value]
    shown = [rule.words for rule in rules if rule.kind == "improve"] or [
        rule.words for rule in rules if rule.kind == "limit"
    ]
    return "promote", "; ".join(shown) or "nothing speaks against it"


# --- rules ----------------------------------------------------------------------------------------------------


def _finding(name: str, found: bool) -> Rule:
    words = f"{name}: {WORDS_OF_FINDINGS.get(name, 'found')}" if found else f"not found: {name}"
    return Rule("finding", name, "not found", "broken" if found else "met", words)


def _limit(key: str, limit: Limit, score: Score | None) -> Rule:
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("at least", limit.at_least), ("at most", limit.at_most))
        if bound is not None
    ]
    wanted = ", ".join(bounds)
    if score is None:
        return Rule("limit", key, wanted, "unknown", f"{key} was not measured, and must be {wanted}")
    # Written so that a value that is not a number is outside.
    inside = (limit.at_least is None or score.value >= limit.at_least) and (
        limit.at_most is None or score.value <= limit.at_most
    )
    shown = f"{key} is {score.value:.4g} {score.unit}".rstrip()
    words = f"{shown}, within {wanted}" if inside else f"{shown} and must be {wanted}"
    return Rule("limit", key, wanted, "met" if inside else "broken", words, score.value, score.interval)


def _paired(key: str, champion: Evidence, challenger: Evidence, repeats: int, seed: int) -> Pair | None:
    ours, theirs = challenger.blocks(key), champion.blocks(key)
    if ours is not None and theirs is not None:
        return pair(key, theirs, ours, repeats, seed)
    our_score, their_score = challenger.score(key), champion.score(key)
    if our_score is None or their_score is None:
        return None
    return pair_scores(key, their_score, our_score)


def _improve(key: str, margin: float | str, found: Pair | None) -> Rule:
    wanted = f"gain above {_shown(margin)}"
    if found is None:
        return Rule("improve", key, wanted, "unknown", f"{key} was not measured of both models")
    comparison, spare, words = _contrast(found, margin, sign=-1)
    if spare is None:
        return Rule("improve", key, wanted, "unknown", words, comparison=comparison)
    if spare[0] > 0:
        return Rule("improve", key, wanted, "met", f"{words}, above {_shown(margin)}", comparison=comparison)
    words = f"{words}, not above {_shown(margin)} with 95% confidence"
    return Rule("improve", key, wanted, "not met", words, comparison=comparison)


def _keep(key: str, margin: float | str, found: Pair | None) -> Rule:
    wanted = f"worse by at most {_shown(margin)}"
    if found is None:
        return Rule("keep", key, wanted, "unknown", f"{key} was not measured of both models")
    comparison, spare, words = _contrast(found, margin, sign=1)
    if spare is None:
        return Rule("keep", key, wanted, "unknown", words, comparison=comparison)
    if spare[0] >= 0:
        return Rule("keep", key, wanted, "met", f"{words}, not worse by {_shown(margin)}", comparison=comparison)
    words = f"{words}, may be worse by more than {_shown(margin)}"
    return Rule("keep", key, wanted, "not met", words, comparison=comparison)


def _contrast(found: Pair, margin: float | str, sign: int) -> tuple[Comparison, Interval | None, str]:
    """The comparison, the interval of the gain less (`sign` -1) or plus (1) the margin, and the figures in words."""
    direction = 1.0 if found.better == "lower" else -1.0

    def gain(champion: np.ndarray, challenger: np.ndarray) -> np.ndarray:
        return direction * (champion - challenger)

    def spare(champion: np.ndarray, challenger: np.ndarray) -> np.ndarray:
        allowed = float(margin[:-1]) / 100 * np.abs(champion) if isinstance(margin, str) else margin
        return gain(champion, challenger) + sign * allowed

    interval = found.interval(gain)
    comparison = Comparison(
        found.metric,
        found.champion,
        found.challenger,
        found.at(gain),
        interval,
        found.unit,
        found.protocol,
        found.method,
    )
    shown = f"{found.metric} {found.champion:.4f} to {found.challenger:.4f} {found.unit}".rstrip()
    if interval is None:
        why = f"the held-out split has fewer than {FEWEST_BLOCKS} blocks, too few for an interval"
        return comparison, None, f"{shown}: {why if 'blocks' in found.method else 'a score has no interval'}"
    figures = f"gain {comparison.gain:.4f} (95% {interval[0]:.4f} to {interval[1]:.4f})"
    return comparison, found.interval(spare), f"{shown}: {figures}"


def _shown(margin: float | str) -> str:
    return margin if isinstance(margin, str) else f"{margin:g}"


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"({interval[0]:.4g} to {interval[1]:.4g})"
