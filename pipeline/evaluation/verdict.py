"""Is it good, is it varied, is it new? Three answers and named failures, from evidence, by the rules in one table.

Pure arithmetic, on the driver. Every rule compares a statistic of the generated examples with the same of held-out
examples: no limit is a number that only one corpus would have. A rule applies where the value is beyond the limit, and
its whole 95% interval beyond the held-out value: the difference is large, and no chance. It is ruled out where the
value is within and the interval does not reach far beyond (twice as far from the held-out value as the limit is);
between the two it is unclear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.evaluation.evidence import GRAM, Evidence

Question = Literal["good", "varied", "new"]
Answer = Literal["yes", "no", "unclear"]
Finding = Literal["noise", "collapsed", "blurred", "copies"]
BITS = "bits per character to a model of held-out text"
COPIED = "share of long n-grams found in the training texts"
IN_SIGNALS = "share of outputs whose values single one training example out"
LONG_GRAM = 12
"""Characters from which on an n-gram is not given again by an honest model, but for stock phrases."""
QUESTIONS: tuple[Question, ...] = ("good", "varied", "new")


LimitOf = Callable[[float, Mapping[str, Evidence]], float]
"""A limit from the statistic's held-out value, and from all evidence where it takes another one's."""


@dataclass(frozen=True)
class Limit:
    """Where a statistic must not go: `above` or `below` a limit that is a function of the held-out value."""

    evidence: str
    side: Literal["above", "below"]
    of: LimitOf
    words: str
    """What the statistic is, as it stands in a sentence."""
    surely: bool = False
    """Whether the whole interval must be beyond the limit: two of ten different outputs are no proof of a share."""


@dataclass(frozen=True)
class Rule:
    """A failure: it applies when all of its `limits` are passed, unless one of the findings in `unless` explains them.

    `finding` names it, or is None where the statistics say no more than that the answer is no. `why` is the reason for
    the limits, and `when` says of the evidence whether the rule is for such examples. Rules are read in order, so what
    explains comes first.
    """

    question: Question
    finding: Finding | None
    limits: tuple[Limit, ...]
    why: str
    unless: tuple[Finding, ...] = ()
    when: Callable[[Mapping[str, Evidence]], bool] = lambda _: True


def times(factor: float) -> LimitOf:
    return lambda reference, _: factor * reference


def plus(more: float) -> LimitOf:
    return lambda reference, _: reference + more


def towards(end: float | str, part: float) -> LimitOf:
    """The `part` of the way from the held-out value to `end`, a number or the held-out value of another statistic."""
    return lambda reference, evidence: (
        reference + part * ((evidence[end].held_out if isinstance(end, str) else end) - reference)
    )


def has_long_grams(evidence: Mapping[str, Evidence]) -> bool:
    return evidence[GRAM].value >= LONG_GRAM if GRAM in evidence else True


RULES: tuple[Rule, ...] = (
    Rule(
        "good",
        "noise",
        (Limit("roughness", "above", towards(1.0, 0.5), "roughness"),),
        "White noise has a roughness of 1 whatever the corpus; halfway there, half of the contrast is noise.",
    ),
    Rule(
        "good",
        "noise",
        (Limit("typical_bits", "above", towards("typical_bits_shuffled", 0.5), BITS),),
        "Held-out texts with their characters shuffled are noise; halfway there, half of what makes a text is gone.",
    ),
    Rule(
        "varied",
        "collapsed",
        (Limit("repeated_share", "above", plus(0.1), "share of outputs that repeat another"),),
        "By construction 0.01 of held-out examples repeat another; a model of 5,000 equally likely outputs repeats one "
        "in ten when 500 are drawn.",
        unless=("noise",),
    ),
    Rule(
        "varied",
        "collapsed",
        (Limit("signal_repeated_share", "above", plus(0.5), "share of outputs whose values repeat another's"),),
        "The same in the model's own representation, with a higher limit: smooth pictures and sounds are alike there "
        "without being the same.",
        unless=("noise",),
    ),
    Rule(
        "varied",
        "collapsed",
        (Limit("shared_share", "above", towards(1.0, 0.7), "share of long n-grams found in another output"),),
        "Stock phrases are shared by good texts too, and more of them by texts of the commonest turns; nearly all of "
        "every text is shared only where texts are repeated.",
        unless=("noise",),
    ),
    Rule(
        "good",
        "blurred",
        (Limit("roughness", "below", times(0.6), "roughness"),),
        "Averaging two neighbours halves the roughness of what is rough; the medians of two halves of a corpus differ "
        "by a tenth.",
    ),
    Rule(
        "good",
        "blurred",
        (Limit("typical_bits", "below", times(0.85), BITS),),
        "A temperature of about 0.8 does so much; halves of a corpus differ by some percent. Nothing but the commonest "
        "turns costs less than real text.",
    ),
    Rule(
        "good",
        "blurred",
        (Limit("distinct_2", "below", times(0.5), "different pairs per token"),),
        "As many tokens of held-out text have twice as many different pairs, and not because outputs repeat.",
        unless=("collapsed",),
    ),
    Rule(
        "new",
        "copies",
        (Limit("singled_out", "above", plus(0.04), "share of outputs that single out one training example", True),),
        "By construction 0.01 of held-out examples do; five times that is no chance, and one output in twenty that is "
        "a copy is a release of training data.",
    ),
    Rule(
        "new",
        "copies",
        (Limit("signal_singled_out", "above", plus(0.04), IN_SIGNALS, True),),
        "The same in the model's own representation: noise may move a copy far in the space of an extractor. Faint "
        "outputs single out the faintest training examples there, which is no copy.",
        unless=("blurred",),
    ),
    Rule(
        "new",
        "copies",
        (Limit("signal_singled_out", "above", plus(0.5), IN_SIGNALS, True),),
        "Half of the outputs do not do so for being faint: they are copies, if blurred ones.",
    ),
    Rule(
        "new",
        "copies",
        (Limit("copied_share", "above", towards(1.0, 0.1), COPIED),),
        "Stock phrases are found for held-out texts too; a tenth of the rest of the text on top of that is memorised. "
        "Texts of the commonest turns are made of stock phrases.",
        unless=("blurred",),
        when=has_long_grams,
    ),
    Rule(
        "new",
        "copies",
        (Limit("copied_share", "above", towards(1.0, 0.75), COPIED),),
        "Short texts, as names, have short n-grams, many of which an honest model gives again; but not nearly all. Nor "
        "do commonest turns go so far.",
    ),
    Rule(
        "new",
        "copies",
        (Limit("copied_texts", "above", towards(1.0, 0.1), "share of texts that are half copied in one span"),),
        "One text in ten, on top of those among held-out texts, is no stock phrase.",
        when=has_long_grams,
    ),
    Rule(
        "good",
        "noise",
        (
            Limit("coverage", "below", times(0.1), "coverage"),
            Limit("recall", "below", times(0.1), "recall"),
        ),
        "Neither lies any output near a real example nor the other way round: nothing in common with the corpus.",
        unless=("noise", "collapsed", "blurred", "copies"),
    ),
    Rule(
        "good",
        None,
        (Limit("precision", "below", times(0.5), "precision", True),),
        "Half as many outputs as real examples lie among real examples.",
    ),
    Rule(
        "good",
        None,
        (Limit("density", "below", times(0.5), "density", True),),
        "Outputs are near half as many real examples as real ones are. Neither rule names a failure, so that a value "
        "at the limit, which another run of the same seed may have on its other side, is unclear.",
    ),
    Rule(
        "varied",
        "collapsed",
        (
            Limit("coverage", "below", times(0.5), "coverage"),
            Limit("recall", "below", times(0.5), "recall"),
            Limit("vendi_score", "below", times(0.8), "Vendi score"),
        ),
        "Outputs as good as real examples that leave half of the real ones out, and are less varied by themselves.",
        unless=("noise", "blurred", "copies"),
    ),
    Rule(
        "varied",
        None,
        (Limit("coverage", "below", times(0.5), "coverage"),),
        "Half of the real examples that should have an output near them have none.",
        unless=("collapsed",),
    ),
    Rule(
        "varied",
        None,
        (Limit("distinct_2", "below", times(0.6), "different pairs per token"),),
        "As many tokens of held-out text have nearly twice as many different pairs.",
        unless=("collapsed",),
    ),
)
"""All rules; those whose evidence is not there are not read."""


@dataclass(frozen=True)
class Verdict:
    """The answers to the three questions, the named failures, and for each question the reasons in words."""

    answers: dict[Question, Answer]
    findings: tuple[Finding, ...]
    reasons: dict[Question, tuple[str, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Of JSON types: `findings`, and of each question its `answer` and the reasons as its `findings`."""
        answers: dict[str, Any] = {
            question: {"answer": self.answers[question], "findings": list(self.reasons[question])}
            for question in QUESTIONS
        }
        return {"findings": list(self.findings), **answers}

    def summary(self) -> dict[str, Any]:
        """The answers by question, and the `findings`."""
        return {**{str(question): answer for question, answer in self.answers.items()}, "findings": list(self.findings)}

    def in_words(self) -> str:
        """One line a question."""
        return "\n".join(
            f"{question}: {self.answers[question]}; {'; '.join(self.reasons[question])}" for question in QUESTIONS
        )


def judge(evidence: Mapping[str, Evidence]) -> Verdict:
    """The verdict on a model from all evidence of its samples, by `RULES`.

    A question with no evidence at all is unclear.
    """
    findings: list[Finding] = []
    against: dict[Question, list[str]] = {question: [] for question in QUESTIONS}
    doubts: dict[Question, list[str]] = {question: [] for question in QUESTIONS}
    passed: dict[Question, list[str]] = {question: [] for question in QUESTIONS}
    for rule in RULES:
        if not all(limit.evidence in evidence for limit in rule.limits):
            continue
        if any(finding in findings for finding in rule.unless) or not rule.when(evidence):
            continue
        outcomes = [outcome(limit, evidence) for limit in rule.limits]
        said = " and ".join(in_words(limit, evidence) for limit in rule.limits)
        if all(one == "beyond" for one in outcomes):
            against[rule.question].append(f"{rule.finding}: {said}" if rule.finding else said)
            if rule.finding and rule.finding not in findings:
                findings.append(rule.finding)
        elif "within" in outcomes:
            passed[rule.question].append(said)
        else:
            doubts[rule.question].append(said)
    answers: dict[Question, Answer] = {}
    reasons: dict[Question, tuple[str, ...]] = {}
    for question in QUESTIONS:
        if against[question]:
            answers[question], reasons[question] = "no", tuple(against[question])
        elif doubts[question]:
            answers[question], reasons[question] = "unclear", tuple(doubts[question])
        elif passed[question]:
            answers[question], reasons[question] = "yes", tuple(passed[question])
        else:
            answers[question], reasons[question] = "unclear", ("nothing was measured that would tell",)
    return Verdict(answers, tuple(findings), reasons)


def outcome(limit: Limit, evidence: Mapping[str, Evidence]) -> Literal["beyond", "within", "between"]:
    """Where the evidence lies to the limit (see the module)."""
    found = evidence[limit.evidence]
    sign = 1.0 if limit.side == "above" else -1.0
    low, high = found.interval or (found.value, found.value)
    near, far = (low, high) if limit.side == "above" else (high, low)
    edge = limit.of(found.held_out, evidence)
    least = edge if limit.surely else found.held_out
    if found.interval is not None and sign * (found.value - edge) > 0 and sign * (near - least) > 0:
        return "beyond"
    reach = found.held_out + 2 * (edge - found.held_out)
    if sign * (found.value - edge) <= 0 and sign * (far - reach) <= 0:
        return "within"
    return "between"


def in_words(limit: Limit, evidence: Mapping[str, Evidence]) -> str:
    """The statistic with its interval, that of held-out examples, and the limit."""
    found = evidence[limit.evidence]
    interval = "" if found.interval is None else f" (95% {found.interval[0]:.3g} to {found.interval[1]:.3g})"
    return (
        f"{limit.words} {found.value:.3g}{interval}, held-out {found.held_out:.3g}, "
        f"limit {'at most' if limit.side == 'above' else 'at least'} {limit.of(found.held_out, evidence):.3g}"
    )
