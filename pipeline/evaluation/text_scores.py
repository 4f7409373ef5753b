"""Is generated text good, varied and new? Every statistic of a set of texts, beside the same of held-out texts.

NumPy, on the driver. The held-out texts are in two halves of as many as were generated: the `references`, that BLEU,
divergence and typicality are measured against, and the `held_out`, that are measured as if they had been generated:
what a perfect model would score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.evaluation.bleu import Bleu
from pipeline.evaluation.copied_spans import Copies, gram_length, shared_share, shared_windows
from pipeline.evaluation.metric import Definition, Interval
from pipeline.evaluation.ngrams import distinct, divergence, over_blocks, repetition
from pipeline.evaluation.tokens import Unit, number, unit_of
from pipeline.evaluation.typicality import reference_bits
from pipeline.models.base import make_generator

LONGEST = 4
"""Tokens of the longest n-grams that are counted."""
BUDGET_SHARE = 0.8
"""Of the tokens of the smaller held-out half, so many are compared: a model may write a little less than the corpus."""
HELD_OUT = "_held_out"

Values = dict[str, tuple[float, Interval | None]]

DEFINITIONS_OF_TEXTS: dict[str, Definition] = {
    "bleu_4": Definition(
        "BLEU-4 against held-out texts",
        "0 to 1",
        "higher",
        "How much of a generated text's wording, up to four tokens, is in held-out texts (Papineni et al. 2002). Read "
        "it with self-BLEU: lower temperatures raise both, and copies score best.",
    ),
    "self_bleu_4": Definition(
        "Self-BLEU-4",
        "0 to 1",
        "lower",
        "How much of a generated text's wording occurs in the other generated texts (Zhu et al. 2018): 1 when all are "
        "alike. As varied as the corpus is the value of held-out texts, not 0.",
    ),
    "distinct_1": Definition(
        "Distinct-1",
        "different tokens per token",
        "higher",
        "How many of the tokens are different ones (Li et al. 2016).",
    ),
    "distinct_2": Definition(
        "Distinct-2",
        "different pairs per token",
        "higher",
        "The same of pairs of tokens. It falls with the amount of text, so all are measured on equally much.",
    ),
    **{
        f"ngram_divergence_{n}": Definition(
            f"Divergence of {n}-grams",
            "bits",
            "lower",
            f"Jensen-Shannon divergence of how often each {n}-gram of tokens occurs, from held-out texts: 0 when "
            "alike, 1 when nothing is shared. Two halves of real text differ as well: see the held-out value.",
        )
        for n in range(1, LONGEST + 1)
    },
    "repetition_4": Definition(
        "Repetition within a text",
        "share of 4-grams",
        "lower",
        "Share of a text's 4-grams that repeat an earlier one of the same text (Welleck et al. 2020).",
    ),
    "typical_bits": Definition(
        "Surprise to a model of held-out characters",
        "bits per character",
        None,
        "What a small character model fitted on held-out texts pays for a generated one. Far above the held-out value: "
        "noise. Far below it: nothing but the commonest turns, a picture's blur in text.",
    ),
    "typical_bits_shuffled": Definition(
        "The same with characters in random order",
        "bits per character",
        None,
        "What the same texts cost once the characters of each are shuffled: the scale's other end, noise.",
    ),
    "shared_share": Definition(
        "Text shared between samples",
        "share of n-grams",
        "lower",
        "Long n-grams of characters that occur in another generated text as well: near 1 when the model has only a few "
        "outputs.",
    ),
    "copied_share": Definition(
        "Copied from the training texts",
        "share of n-grams",
        "lower",
        "Long n-grams of characters that occur word for word in the training texts. Stock phrases of held-out text do "
        "so too: only what is above the held-out value was memorised.",
    ),
    "copied_texts": Definition(
        "Texts that are half copied",
        "share of texts",
        "lower",
        "Texts of which one span of at least half their length occurs word for word in the training texts.",
    ),
    "longest_copied_span": Definition(
        "Longest copied span",
        "characters",
        "lower",
        "The longest span of any generated text that occurs word for word in the training texts.",
    ),
}
"""The scores of generated texts; each has a companion `<key>_held_out`."""

DEFINITIONS_OF_TEXTS |= {
    key + HELD_OUT: Definition(
        f"{definition.title}, held-out",
        definition.unit,
        None,
        "The same of as many held-out texts: what a perfect model would score.",
    )
    for key, definition in DEFINITIONS_OF_TEXTS.items()
}


@dataclass(frozen=True)
class TextRules:
    """How the texts of a corpus are read: the tokens' unit, the characters of n-grams that count as copied, the tokens
    that distinct-n and divergences see, and whether texts are whole records. From held-out texts alone."""

    unit: Unit
    gram: int
    budget: int
    whole: bool

    @classmethod
    def of(cls, references: Sequence[str], held_out: Sequence[str], whole: bool) -> TextRules:
        both = [*references, *held_out]
        unit = unit_of(both)
        sizes = [len(tokens.ids) for tokens in number([references, held_out], unit)]
        return cls(unit, gram_length(both), int(BUDGET_SHARE * min(sizes)), whole)


def quality_and_variety(texts: Sequence[str], references: Sequence[str], rules: TextRules) -> Values:
    """The statistics of `texts` that need no training split, each with its 95% interval: a jackknife over ten blocks of
    texts, and of references where they are measured against such. Keys of `DEFINITIONS_OF_TEXTS`. Equal texts count
    once in what is typical, whose interval is given the references: it covers the draw of `texts` alone."""
    ours, theirs = number([texts, references], rules.unit)
    against, own = Bleu(ours, theirs, LONGEST), Bleu(ours, None, LONGEST)
    cut, cut_theirs = ours.first(rules.budget), theirs.first(rules.budget)
    bits_of = divergence(cut, cut_theirs, LONGEST)
    repeated = repetition(ours, LONGEST)
    once = [texts[row] for row in different(texts)]
    bits, characters = reference_bits(once, references)
    shuffled_bits, _ = reference_bits(shuffled(once), references)
    owner, hashes = shared_windows(texts, rules.gram, rules.whole)

    def of_both(chosen: np.ndarray, chosen_theirs: np.ndarray) -> dict[str, float]:
        return {"bleu_4": float(against.scores(chosen_theirs)[chosen].mean())}

    def of_cuts(chosen: np.ndarray, chosen_theirs: np.ndarray) -> dict[str, float]:
        divergences = bits_of(chosen, chosen_theirs)
        return {
            **{f"distinct_{n}": distinct(cut, n, chosen) for n in (1, 2)},
            **{f"ngram_divergence_{n}": value for n, value in enumerate(divergences, start=1)},
        }

    def of_ours(chosen: np.ndarray) -> dict[str, float]:
        some = repeated[chosen]
        inside = chosen[owner]
        return {
            "self_bleu_4": float(own.scores(chosen)[chosen].mean()),
            "repetition_4": float(np.nanmean(some)) if not np.isnan(some).all() else 0.0,
            "shared_share": shared_share(owner[inside], hashes[inside]),
        }

    def of_different(chosen: np.ndarray) -> dict[str, float]:
        total = max(1, characters[chosen].sum())
        return {
            "typical_bits": float(bits[chosen].sum() / total),
            "typical_bits_shuffled": float(shuffled_bits[chosen].sum() / total),
        }

    values = over_blocks([len(ours), len(theirs)], of_both) | over_blocks([len(ours)], of_ours)
    values |= over_blocks([len(cut), len(cut_theirs)], of_cuts) | over_blocks([len(once)], of_different)
    return {
        key: value if key.startswith("typical_bits") else _as_share(value, len(texts)) for key, value in values.items()
    }


def shuffled(texts: Sequence[str]) -> list[str]:
    """The texts with the characters of each in random order, the same for equal texts at the same place."""
    result: list[str] = []
    for row, text in enumerate(texts):
        order = torch.randperm(len(text), generator=make_generator(0, "shuffled-characters", row))
        result.append("".join(text[place] for place in order.tolist()))
    return result


def newness(texts: Sequence[str], copies: Copies) -> Values:
    """What is copied from the training split, each with its 95% interval: of n-grams a jackknife over ten blocks of
    texts, of texts Wilson's (1927); the longest span is an extreme and has none. Equal texts count once: what a model
    says again is no further evidence."""
    first = different(texts)
    grams, copied = copies.grams[first], copies.num_copied[first]
    spans = [copies.span(int(row), len(texts[row])) for row in first]
    sizes = np.array([stop - start for start, stop in spans])
    half = int((sizes >= np.maximum(1, np.array([len(texts[row]) for row in first]) / 2)).sum())

    def share(chosen: np.ndarray) -> dict[str, float]:
        return {"copied_share": float(copied[chosen].sum() / max(1.0, grams[chosen].sum()))}

    return {
        "copied_share": _as_share(over_blocks([len(first)], share)["copied_share"], len(first)),
        "copied_texts": (half / len(first), wilson(half, len(first))),
        "longest_copied_span": (float(sizes.max()), None),
    }


def different(texts: Sequence[str]) -> np.ndarray:
    """The rows of texts that are not equal to an earlier one, int64 `[any]`."""
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    return np.array(sorted(first.values()), np.int64)


def wilson(count: int, total: int) -> Interval:
    """The 95% interval of a share of `total` (Wilson 1927)."""
    z = 1.959963984540054
    share, spread = count / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _as_share(value: tuple[float, Interval | None], texts: int) -> tuple[float, Interval | None]:
    """An interval within 0 to 1; of nothing seen in `texts` texts, up to what Wilson's interval would have."""
    share, interval = value
    if interval is None:
        return value
    high = max(interval[1], wilson(0, texts)[1]) if share == 0 else interval[1]
    return share, (max(0.0, interval[0]), min(1.0, high))
