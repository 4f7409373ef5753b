"""BLEU and self-BLEU against NLTK, on made and on real text."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pipeline.evaluation.bleu import Bleu
from pipeline.evaluation.tokens import number, tokenise
from tests.evaluation.texts import captions

RANDOM = random.Random(0)
MADE = [" ".join(RANDOM.choices("abcdef", k=size)) for size in [1, 2, 3, 3, 4, 5, 5, 8, 9, 12, 12, 14, 20, 1, 7]]


def by_nltk(hypotheses, references, order):
    bleu = pytest.importorskip("nltk.translate.bleu_score", reason="nltk is in the dev extra")
    smoothing = bleu.SmoothingFunction().method1
    weights = (1 / order,) * order
    return [
        bleu.sentence_bleu(others, hypothesis, weights, smoothing_function=smoothing)
        for hypothesis, others in zip(hypotheses, references, strict=True)
    ]


@pytest.mark.parametrize("order", [1, 2, 4, 5])
@pytest.mark.parametrize("source", ["made", "captions"])
def test_bleu_is_that_of_nltk(source, order):
    texts = MADE if source == "made" else captions("test")[:60]
    ours, theirs = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    split = [[tokenise(text, "words") for text in side] for side in (ours, theirs)]
    expected = by_nltk(split[0], [split[1]] * len(ours), order)
    found = Bleu(*number([ours, theirs], "words"), order).scores()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("source", ["made", "captions"])
def test_self_bleu_is_that_of_nltk_against_all_others(source, order):
    texts = MADE if source == "made" else captions("test")[:40]
    split = [tokenise(text, "words") for text in texts]
    expected = by_nltk(split, [split[:i] + split[i + 1 :] for i in range(len(split))], order)
    found = Bleu(number([texts], "words")[0], None, order).scores()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_leaving_out_references_is_measuring_without_them():
    ours, theirs = number([MADE[:6], MADE[6:]], "words")
    among = np.arange(len(theirs)) % 2 == 0
    fewer = number([MADE[:6], MADE[6:][::2]], "words")
    np.testing.assert_array_equal(Bleu(ours, theirs, 3).scores(among), Bleu(*fewer, 3).scores())
    chosen = np.arange(len(MADE)) % 3 > 0
    own = Bleu(number([MADE], "words")[0], None, 3).scores(chosen)[chosen]
    kept = [text for text, taken in zip(MADE, chosen, strict=True) if taken]
    np.testing.assert_array_equal(own, Bleu(number([kept], "words")[0], None, 3).scores())


def test_equal_texts_have_self_bleu_one():
    assert Bleu(number([["a b c d e"] * 3], "words")[0], None, 4).scores().tolist() == [1.0, 1.0, 1.0]
