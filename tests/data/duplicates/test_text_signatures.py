"""Signatures of texts: stable for ever, blind to trivial edits, unbiased about the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.duplicates import sign, sign_batch, similar, stack
from pipeline.data.duplicates.text import CHARACTERS_AT_ONCE, MIN_TOKENS, VALUES, _tokens_of_each

ENGLISH = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness"
CHINESE = "秦川雄帝宅，函谷壯皇居。綺殿千尋起，離宮百雉餘。"
SHORT = "the quick brown fox jumps over the lazy dog"
WORDS = st.lists(st.text("abcdefghijklmnopqrstuvwxyzäßéλж", min_size=1, max_size=9), min_size=MIN_TOKENS, max_size=60)


def similarity(first: str, second: str) -> float:
    signatures, _ = stack([sign(first, "text"), sign(second, "text")], "text")
    return float(similar(np.array([[0, 1]]), signatures, "text")[0])


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        (ENGLISH, "bd6812f56425d63966c5669a17650800"),
        (CHINESE, "0c9e6865fde0fbec5ac60103de068406"),
        (SHORT, "9ad728ba8f4accdfe3cea6a3ee0b4661"),
    ],
    ids=["en", "zh", "short"],
)
def test_a_stored_signature_is_what_is_computed_again(text: str, beginning: str) -> None:
    assert sign(text, "text")[:16].hex() == beginning


@given(WORDS, st.sampled_from([" ", "\n", " — ", ", ", "\t\r\n"]), st.sampled_from([str.upper, str.lower, str.title]))
def test_case_space_and_punctuation_do_not_count(words: list[str], gap: str, case: object) -> None:
    assert sign(gap.join(map(case, words)), "text") == sign(" ".join(words), "text")  # type: ignore[arg-type]


@given(st.lists(st.text("abc'xyz", max_size=9), max_size=20))
def test_words_have_one_hash_wherever_they_stand_and_whatever_is_around(words: list[str]) -> None:
    text = " ".join(words)
    hashes, beside, among = _tokens_of_each([text, text, f"... {text} naïve"])
    assert np.array_equal(beside, hashes) and np.array_equal(among[:-1], hashes)
    assert len(hashes) == sum(word.replace("'", "") != "" for word in words)


def test_texts_signed_together_are_signed_as_alone() -> None:
    long = " ".join(f"w{number}" for number in range(5000))
    texts = ["", ENGLISH, SHORT, CHINESE, "Emma", long, ENGLISH + " …", "x" * (CHARACTERS_AT_ONCE + 1), "'", SHORT]
    assert sign_batch(texts, "text") == [sign(text, "text") for text in texts]


def test_fewer_words_than_say_anything_have_no_signature() -> None:
    assert sign("Emma", "text") == sign("", "text") == sign("?! …", "text") == b""
    assert sign("江南好", "text") == b""


def test_texts_of_a_caption_s_length_are_near_only_with_the_same_words() -> None:
    assert similarity(SHORT, SHORT.upper() + "!") == 1
    assert similarity(SHORT, SHORT.replace("lazy", "crazy")) < 0.1


def test_the_estimate_is_unbiased_with_the_deviation_of_a_binomial() -> None:
    random = np.random.default_rng(0)
    errors = []
    for trial in range(150):
        shared, own = random.integers(100, 300), random.integers(20, 200)
        words = [f"w{trial}x{i}" for i in range(shared + 2 * own)]
        first, second = words[: shared + own], words[:shared] + words[shared + own :]
        sets = [{tuple(each[i : i + 3]) for i in range(len(each) - 2)} for each in (first, second)]
        truth = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        estimate = similarity(" ".join(first), " ".join(second))
        errors.append((estimate - truth) / np.sqrt(truth * (1 - truth) / VALUES))
    assert abs(np.mean(errors)) < 3 / np.sqrt(150)
    assert 0.8 < np.std(errors) < 1.2


def test_a_text_of_many_blocks_is_near_itself_with_a_word_put_in_front() -> None:
    words = [f"word{i * 7919 % 5003}" for i in range(CHARACTERS_AT_ONCE // 4)]
    assert similarity(" ".join(words), "Prologue. " + " ".join(words)) > 0.9
