"""Copied n-grams and longest spans against brute force, and what of them is shown."""

from __future__ import annotations

import random
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation import copied_spans
from pipeline.evaluation.copied_spans import (
    find_copies,
    gram_length,
    shared_share,
    shared_windows,
    show_copies,
    window_hashes,
)
from pipeline.evaluation.suffixes import SuffixAutomaton

some_texts = st.lists(st.text("ab", max_size=14), min_size=1, max_size=4)


def framed(text: str, whole: bool) -> str:
    return f"\x02{text}\x02" if whole else text


def longest_by_force(text: str, training: list[str], n: int) -> int:
    spans = (text[i:j] for i in range(len(text)) for j in range(i + n, len(text) + 1))
    return max((len(span) for span in spans if any(span in other for other in training)), default=0)


@given(some_texts, some_texts, st.integers(1, 6), st.booleans())
def test_copies_are_those_found_by_trying_every_span(texts, training, n, whole):
    batches = [training[::2], training[1::2]]
    copies = find_copies(texts, batches, n, whole)
    framed_training = [framed(text, whole) for text in training]
    for place, text in enumerate(framed(text, whole) for text in texts):
        grams = [text[i : i + n] for i in range(len(text) - n + 1)]
        assert copies.copied[place].tolist() == [any(gram in other for other in framed_training) for gram in grams]
        start, size = copies.longest[place]
        assert size == longest_by_force(text, framed_training, n)
        assert size == 0 or any(text[start : start + size] in other for other in framed_training)


@given(some_texts, st.text("ab", max_size=60))
def test_the_automaton_meets_what_is_read(texts, read):
    automaton = SuffixAutomaton([[ord(c) for c in text] for text in texts])
    automaton.read([ord(c) for c in read])
    for text, (start, size) in zip(texts, automaton.longest(), strict=True):
        assert size == longest_by_force(text, [read], 1)
        assert text[start : start + size] in read


def test_colliding_hashes_do_not_make_copies():
    rng = random.Random(0)
    texts, training = (["".join(rng.choices("abcd", k=60)) for _ in range(20)] for _ in range(2))
    expected = find_copies(texts, [training], 4, False)

    def coarse(codes, n, base=0):
        # Only base + 2 and later tell n-grams of the texts apart; and the training's still fall on the same hashes.
        hashes = window_hashes(codes, n)
        return hashes & np.uint64(0xFF00000000000000) if base == 0x9E3779B97F4A7C15 else hashes

    with mock.patch.object(copied_spans, "window_hashes", coarse):
        found = find_copies(texts, [training], 4, False)
    assert [mask.tolist() for mask in found.copied] == [mask.tolist() for mask in expected.copied]
    assert found.longest.tolist() == expected.longest.tolist()


def test_a_hash_that_training_shares_by_chance_is_compared():
    texts, training = ["abcdefgh"], ["zzzzzzzzzzzzzz"]
    with mock.patch.object(
        copied_spans, "window_hashes", lambda codes, n, base=0: codes[: len(codes) - n + 1].astype(np.uint64) * 0 + 7
    ):
        assert not find_copies(["abcd"], [training], 4, False).copied[0].any()
    assert not find_copies(texts, [training], 4, False).copied[0].any()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 40])
def test_equal_windows_have_equal_hashes_and_others_have_others(n):
    codes = np.array(random.Random(n).choices(range(97, 100), k=300), np.uint32)
    windows = [tuple(codes[i : i + n]) for i in range(len(codes) - n + 1)]
    hashes = window_hashes(codes, n).tolist()
    assert len(hashes) == len(windows)
    assert len(set(zip(windows, hashes, strict=True))) == len(set(windows)) == len(set(hashes))


def test_a_copy_with_one_edit_is_marked_on_both_sides():
    source = "it was the best of times, it was the worst of times"
    text = source.replace("best", "bent")
    copies = find_copies([text, "nothing of the kind"], [["something else", source]], 8, True)
    assert copies.marks(0, len(text)) == [(0, 13), (14, len(text))]
    assert copies.span(0, len(text)) == (14, len(text))
    assert copies.span(1, 19) == (0, 0)
    (shown,) = show_copies([text, "nothing of the kind"], copies, [["something else", source]])
    assert shown.source == source
    assert shown.text[slice(*shown.span)] == source[slice(*shown.source_span)] == source[14:]
    assert shown.marks == ((0, 13), (14, len(text)))


def test_a_long_source_is_shown_around_the_span():
    stream = "".join(random.Random(1).choices("abcdefghij", k=5000))
    copies = find_copies([stream[2000:2050]], [[stream]], 20, False)
    (shown,) = show_copies([stream[2000:2050]], copies, [[stream]])
    assert len(shown.source) == 50 + 2 * copied_spans.CONTEXT
    assert shown.source[slice(*shown.source_span)] == stream[2000:2050]


def test_the_gram_is_half_a_text_at_most_and_shorter_in_chinese():
    assert gram_length(["word " * 100]) == 40
    assert gram_length(["a man on a small horse in front of a barn ."]) == 21
    assert gram_length(["emma", "olivia"]) == 6
    assert gram_length(["春眠不覺曉處處聞啼鳥夜來風雨聲花落知多少" * 4]) == 12


def test_sharing_is_between_different_texts():
    assert shared_share(*shared_windows(["abab abab", "xyz xyz x"], 3, False)) == 0
    assert shared_share(*shared_windows(["abcd", "abcd", "efgh"], 4, False)) == pytest.approx(2 / 3)
    assert shared_share(*shared_windows(["ab"], 4, False)) == 0
