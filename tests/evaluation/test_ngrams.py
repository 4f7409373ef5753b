"""Tokens, distinct-n, repetition, divergence, typicality: against brute force, SciPy and closed forms."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from pipeline.evaluation.ngrams import distinct, divergence, over_blocks, repetition
from pipeline.evaluation.tokens import gram_ids, number, tokenise, unit_of
from pipeline.evaluation.typicality import reference_bits

TEXTS = ["a b a b a b", "the cat sat on the mat .", "", "the", "the cat sat on the cat ."]
words = st.lists(st.text("ab ", max_size=12), min_size=1, max_size=5)


def test_words_are_runs_of_letters_marks_and_single_characters_of_chinese():
    assert tokenise("Don't stop, café№7!", "words") == ["Don't", "stop", ",", "café", "№", "7", "!"]
    assert tokenise("我爱 Python 3", "words") == ["我", "爱", "Python", "3"]
    assert tokenise("a \n b", "characters") == ["a", " ", "b"]


@pytest.mark.parametrize(
    ("texts", "unit"),
    [
        (["to be or not to be"], "words"),
        (["春眠不覺曉，處處聞啼鳥。"], "characters"),
        (["emma", "olivia"], "characters"),
        ([], "characters"),
    ],
)
def test_the_unit_is_a_function_of_the_texts(texts, unit):
    assert unit_of(texts) == unit


@given(words)
def test_equal_grams_and_only_those_have_equal_identifiers(texts):
    tokens = number([texts], "characters")[0]
    flat = [token for text in texts for token in tokenise(text, "characters")]
    for n, ids in enumerate(gram_ids(tokens, 3), start=1):
        seen: dict[tuple[str, ...], int] = {}
        for place, found in enumerate(ids):
            inside = place + n <= len(flat) and tokens.text[place] == tokens.text[min(place + n, len(flat)) - 1]
            assert (found >= 0) == inside
            if inside:
                assert seen.setdefault(tuple(flat[place : place + n]), found) == found
        assert len(set(seen.values())) == len(seen)


def test_distinct_n_counts_different_grams_over_tokens():
    tokens = number([TEXTS], "words")[0]
    grams = [(a, b) for text in TEXTS for a, b in zip(text.split(), text.split()[1:], strict=False)]
    assert distinct(tokens, 2) == len(set(grams)) / sum(len(text.split()) for text in TEXTS)
    assert distinct(number([["a b c d"]], "words")[0], 1) == 1.0


def test_a_cut_has_the_budget_of_tokens():
    tokens = number([TEXTS], "words")[0]
    for budget in range(1, 22):
        cut = tokens.first(budget)
        assert len(cut.ids) == int(cut.lengths.sum()) == min(budget, len(tokens.ids))
        assert cut.ids.tolist() == tokens.ids[:budget].tolist()


def test_repetition_is_the_share_of_grams_seen_before_in_the_same_text():
    found = repetition(number([TEXTS], "words")[0], 2)
    assert found[0] == pytest.approx(1 - 2 / 5)
    assert found[1] == 0
    assert math.isnan(found[2])
    assert math.isnan(found[3])
    assert found[4] == pytest.approx(1 - 5 / 6)  # "the cat" twice


def test_divergence_is_scipys_and_of_disjoint_texts_one_bit():
    ours, theirs = number([["a b b c", "a a"], ["a c c d", "b"]], "words")
    every = np.ones(2, bool)
    p, q = np.array([3, 2, 1, 0]) / 6, np.array([1, 1, 2, 1]) / 5
    assert divergence(ours, theirs, 1)(every, every)[0] == pytest.approx(jensenshannon(p, q, base=2) ** 2, rel=1e-12)
    assert divergence(ours, ours, 2)(every, every) == [0.0, 0.0]
    ours, theirs = number([["a b"], ["c d"]], "words")
    assert divergence(ours, theirs, 2)(np.ones(1, bool), np.ones(1, bool)) == [1.0, 1.0]


def test_intervals_leave_out_blocks_of_each_set():
    sizes = []
    over_blocks([20, 30], lambda a, b: sizes.append((int(a.sum()), int(b.sum()))) or {"n": 0.0})
    assert sizes[0] == (20, 30)
    assert set(sizes[1:]) == {(18, 27)}
    assert len(sizes) == 11


def test_typicality_is_witten_and_bells_interpolation():
    text, reference = "abac", ["abab", "ac"]
    flat = Counter("".join(reference))
    zero = 1 / (3 + 1)
    ones = {c: (flat[c] + 3 * zero) / (6 + 3) for c in "abc"}
    # After a: b twice, c once, two kinds of followers; after b: a once.
    after_a = {"b": (2 + 2 * ones["b"]) / 5, "c": (1 + 2 * ones["c"]) / 5}
    after_b = {"a": (1 + 1 * ones["a"]) / 2}
    expected = -sum(map(math.log2, (ones["a"], after_a["b"], after_b["a"], after_a["c"])))
    bits, characters = reference_bits([text], reference, order=2)
    assert characters.tolist() == [4]
    assert bits[0] == pytest.approx(expected, rel=1e-12)


def test_a_character_model_sums_to_one_over_all_that_may_follow():
    reference = ["abracadabra", "banana"]
    alphabet = [*sorted(set("".join(reference))), "?"]
    prefix, _ = reference_bits(["abra"], reference)
    longer, _ = reference_bits(["abra" + c for c in alphabet], reference)
    assert sum(2 ** -(longer - prefix[0])) == pytest.approx(1.0, rel=1e-12)


def test_random_characters_cost_more_than_the_language():
    rng = random.Random(0)
    reference = ["the cat sat on the mat and the dog lay on the rug"] * 5
    noise = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(200))
    (language, random_), (n, m) = reference_bits(["the dog sat on the mat", noise], reference)
    assert language / n < 1.0 < 4.0 < random_ / m
