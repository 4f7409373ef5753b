"""The evidence that a verdict on generated texts is made of: every statistic beside that of as many held-out texts.

NumPy, on the driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.evaluation.copied_spans import find_copies
from pipeline.evaluation.evidence import GRAM, Evidence, exactly
from pipeline.evaluation.text_scores import TextRules, newness, quality_and_variety


def text_evidence(
    generated: Sequence[str],
    references: Sequence[str],
    held_out: Sequence[str],
    training: Iterable[Sequence[str]],
    whole: bool = True,
) -> dict[str, Evidence]:
    """Every statistic of `generated`, by its key in `DEFINITIONS_OF_TEXTS`, beside that of `held_out`.

    The three should be as many, `references` and `held_out` two halves of the held-out split. `training` is read once,
    in batches of texts. `whole`: texts are records, and not cut from a stream. `GRAM` is beside them.
    """
    rules = TextRules.of(references, held_out, whole)
    copies = find_copies([*generated, *held_out], training, rules.gram, whole)
    ours, theirs = copies.part(0, len(generated)), copies.part(len(generated), len(generated) + len(held_out))
    values = quality_and_variety(generated, references, rules) | newness(generated, ours)
    others = quality_and_variety(held_out, references, rules) | newness(held_out, theirs)
    return {key: Evidence(*values[key], *others[key]) for key in values} | {GRAM: exactly(rules.gram)}
