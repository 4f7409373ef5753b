"""What the row of the text GAN is measured by: the divergence of n-grams, and Markov samplers of characters."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.benchmarks.markov import MarkovSampler, cut_to, divergence

TEXTS = ["a cat", "a dog", "the cat sat"]


def test_divergence_is_nothing_between_equals_and_one_bit_between_strangers() -> None:
    assert divergence(TEXTS, list(reversed(TEXTS))) == 0
    assert divergence(["aaaaaa"], ["bbbbbb"], length=2) == pytest.approx(1)
    # With the ends of the texts P = (2, 1, 2, 0) / 5 and Q = (2, 1, 1, 1) / 5 over (end, a, b, c).
    expected = (2 / 5 * np.log2(2 / 1.5) + 1 / 5 * np.log2(1 / 1.5) + 1 / 5 * np.log2(2)) / 2
    assert divergence(["abb"], ["abc"], length=1) == pytest.approx(expected)
    assert divergence(["abc"], ["abb"], length=1) == pytest.approx(expected)


def test_a_sampler_of_long_contexts_repeats_its_texts() -> None:
    sampler, generator = MarkovSampler(TEXTS, 12), np.random.default_rng(0)
    drawn = [sampler.draw(generator, 20) for _ in range(300)]
    assert set(drawn) == set(TEXTS)
    assert Counter(drawn)["a cat"] == pytest.approx(100, abs=30)


def test_a_sampler_of_pairs_draws_successors_as_often_as_they_come() -> None:
    sampler, generator = MarkovSampler(["aab", "ab"], 2), np.random.default_rng(0)
    text = "".join(sampler.draw(generator, 50) + "|" for _ in range(3000))
    pairs = Counter(zip(text, text[1:], strict=False))
    assert pairs["a", "a"] / (pairs["a", "a"] + pairs["a", "b"]) == pytest.approx(1 / 3, abs=0.03)
    assert max(map(len, text.split("|"))) <= 50


def test_texts_are_cut_to_as_many_characters() -> None:
    assert cut_to(TEXTS, 10) == TEXTS[:2]
    assert cut_to(TEXTS, 9) == TEXTS[:1]
