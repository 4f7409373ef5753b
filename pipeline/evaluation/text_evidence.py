"""The evidence that a verdict on generated texts is made of, and the limits at which it speaks against a model.

NumPy, on the driver. Plain numbers: every statistic beside that of as many held-out texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluation.copied_spans import find_copies
from pipeline.evaluation.metric import Interval, Score
from pipeline.evaluation.text_scores import DEFINITIONS_OF_TEXTS, HELD_OUT, TextRules, newness, quality_and_variety


@dataclass(frozen=True)
class Evidence:
    """A statistic of generated texts, its 95% interval, and the same of held-out texts: plain numbers."""

    value: float
    interval: Interval | None
    held_out: float
    held_out_interval: Interval | None

    def above(self, limit: float) -> bool:
        """Whether the value is above a limit, and its whole interval above the held-out value."""
        return self.value > limit and (self.interval is None or self.interval[0] > self.held_out)

    def below(self, limit: float) -> bool:
        """Whether the value is below a limit, and its whole interval below the held-out value."""
        return self.value < limit and (self.interval is None or self.interval[1] < self.held_out)


def text_evidence(
    generated: Sequence[str],
    references: Sequence[str],
    held_out: Sequence[str],
    training: Iterable[Sequence[str]],
    whole: bool = True,
) -> dict[str, Evidence]:
    """Every statistic of `generated`, by its key in `DEFINITIONS_OF_TEXTS`, beside that of `held_out`.

    The three should be as many, `references` and `held_out` two halves of the held-out split. `training` is read once,
    in batches of texts. `whole`: texts are records, and not cut from a stream.
    """
    rules = TextRules.of(references, held_out, whole)
    copies = find_copies([*generated, *held_out], training, rules.gram, whole)
    ours, theirs = copies.part(0, len(generated)), copies.part(len(generated), len(generated) + len(held_out))
    values = quality_and_variety(generated, references, rules) | newness(generated, ours)
    others = quality_and_variety(held_out, references, rules) | newness(held_out, theirs)
    return {key: Evidence(*values[key], *others[key]) for key in values}


MOST_COPIED, MOST_COPIED_OF_SHORT, SHORT_GRAM = 0.1, 0.75, 12
MOST_SHARED, MOST_OF_BLUR = 0.5, 0.95
LEAST_TYPICAL, LEAST_DISTINCT = 0.85, 0.5
MOST_NOISE = 0.5


def text_findings(evidence: Mapping[str, Evidence], gram: int) -> dict[str, str]:
    """What is wrong with generated texts, by its name, in words with the numbers; empty when nothing is.

    Each limit is relative to held-out text, and the 95% interval must lie beyond the held-out value as well.
    - `copies`: of the n-grams that are not copied in held-out text, a tenth is; of n-grams of fewer than 12 characters
      (those of names, many of which an honest model gives again) three quarters.
    - `collapsed`: of the n-grams that held-out texts do not share with each other, half are shared.
    - `blurred`: a model of held-out characters pays less than 0.85 of what it pays for held-out texts; or there are
      less than half as many different pairs of tokens, and not just because whole outputs repeat (0.95 is shared).
    - `noise`: that model pays more than halfway from held-out texts to those with their characters shuffled.
    """
    found: dict[str, str] = {}
    copied, shared = evidence["copied_share"], evidence["shared_share"]
    bits, pairs = evidence["typical_bits"], evidence["distinct_2"]
    most = MOST_COPIED if gram >= SHORT_GRAM else MOST_COPIED_OF_SHORT
    if copied.above(copied.held_out + most * (1 - copied.held_out)):
        found["copies"] = (
            f"{copied.value:.1%} of n-grams are in the training texts, {copied.held_out:.1%} in held-out text"
        )
    if shared.above(shared.held_out + MOST_SHARED * (1 - shared.held_out)):
        found["collapsed"] = f"samples share {shared.value:.1%} of n-grams, held-out texts {shared.held_out:.1%}"
    if bits.below(LEAST_TYPICAL * bits.held_out):
        found["blurred"] = f"{bits.value:.2f} bits per character are typical, held-out texts have {bits.held_out:.2f}"
    elif shared.value < MOST_OF_BLUR and pairs.below(LEAST_DISTINCT * pairs.held_out):
        found["blurred"] = f"{pairs.value:.3f} different pairs per token, held-out texts have {pairs.held_out:.3f}"
    noise = evidence["typical_bits_shuffled"].held_out
    if bits.above(bits.held_out + MOST_NOISE * (noise - bits.held_out)):
        found["noise"] = (
            f"{bits.value:.2f} bits per character, held-out texts {bits.held_out:.2f}, shuffled {noise:.2f}"
        )
    return found


def evidence_of(scores: Mapping[str, Score], prefix: str = "") -> dict[str, Evidence]:
    """The evidence that scores (with their split's `prefix`, as `test/`) hold; empty where there are none of texts."""
    return {
        key: Evidence(
            scores[prefix + key].value,
            scores[prefix + key].interval,
            scores[prefix + key + HELD_OUT].value,
            scores[prefix + key + HELD_OUT].interval,
        )
        for key in DEFINITIONS_OF_TEXTS
        if prefix + key in scores and prefix + key + HELD_OUT in scores
    }
