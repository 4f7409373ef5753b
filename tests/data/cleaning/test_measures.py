"""The measures that records are dropped by, against closed forms and reference implementations."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.cleaning.audio import clipped_share, peak_level_dbfs
from pipeline.data.cleaning.image import grey_deviation
from pipeline.data.cleaning.language import MIN_LETTERS, check_languages, language_of
from pipeline.data.cleaning.text import compose, remove_control, repair_encoding, repeated_share, symbol_share
from pipeline.errors import SpecError

RATE = 8000


# --- text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("every word here is another one", 0.0),
        ("aa aa", 0.0),
        ("abcd\nabcd", 1 / 2),
        ("abcd\nabcd\nabcd\nabcd", 3 / 4),
        ("ab\ncdefgh\nab", 2 / 10),
        ("one a\ntwo b\n\nthree\n\none a\ntwo b", 11 / 27),  # a paragraph of 11 characters, of 27
        ("a b c d e f a b c d e", 5 / 11),
        ("a b x a b y a b z", 4 / 9),
        ("a a a a a a a a a a", 9 / 10),
    ],
)
def test_repeated_share_is_what_counting_gives(text: str, share: float) -> None:
    assert repeated_share(text) == pytest.approx(share)


def slow_share_of_phrases(words: list[str], count: int) -> float:
    seen, covered = set(), set()
    for place in range(len(words) - count + 1):
        phrase = tuple(words[place : place + count])
        if phrase in seen:
            covered |= set(range(place, place + count))
        seen.add(phrase)
    return sum(len(words[place]) for place in covered) / sum(map(len, words))


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), min_size=1, max_size=60))
def test_longer_repeated_phrases_never_cover_more(words: list[str]) -> None:
    share = repeated_share(" ".join(words))
    assert all(slow_share_of_phrases(words, count) <= share + 1e-12 for count in range(5, 11))
    assert 0 <= share <= 1


@given(st.text(alphabet="ab, .\n#é\u0301中5", max_size=40) | st.text(st.characters(max_codepoint=127), max_size=40))
def test_symbol_share_is_what_counting_gives(text: str) -> None:
    symbols = [c for c in text if not c.isspace() and unicodedata.category(c)[0] not in "LNM"]
    assert symbol_share(text) == (len(symbols) / len(text) if text else 0)


def test_wrong_decoding_is_repaired_and_style_is_not() -> None:
    assert repair_encoding("schÃ¶n â€” voilÃ\xa0") == "schön — voilà"
    for text in ("“curled” ‘quotes’", "ﬁ", "ＬＯＵＤ", "&lt;b&gt; &amp;", "a\r\nb", "a\x1b[31mb", "schön"):
        assert repair_encoding(text) == text


@given(st.text())
def test_the_fast_way_for_ascii_removes_the_same_characters(text: str) -> None:
    slow = "".join(c for c in text if c in "\t\n" or (unicodedata.category(c) not in ("Cc", "Cs") and c != "\ufeff"))
    assert remove_control(text) == slow
    assert remove_control(text.encode("ascii", "ignore").decode()) == "".join(c for c in slow if c.isascii())
    assert compose(compose(text)) == compose(text)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The quick brown fox jumps over the lazy dog near the river."),
        ("de", "Der schnelle braune Fuchs springt über den faulen Hund am Fluss."),
        ("fr", "Le renard brun saute par-dessus le chien paresseux près de la rivière."),
        ("ru", "Быстрая коричневая лиса перепрыгивает через ленивую собаку."),
        ("zh", "我们今天去公园散步，天气非常好，大家都很高兴，还看到了很多美丽的花。"),
    ],
)
def test_languages_are_told_but_of_short_texts(language: str, text: str) -> None:
    assert language_of(text) == language
    assert language_of("1234 " * 100 + "x" * (MIN_LETTERS - 1)) is None


def test_a_language_that_cannot_be_told_is_refused() -> None:
    check_languages(("en", "zh"))
    with pytest.raises(SpecError, match=r"languages: qq cannot be told; allowed are .*en"):
        check_languages(("en", "qq"))


# --- pictures -------------------------------------------------------------------------------------------------


def test_grey_deviation_is_that_of_the_levels() -> None:
    picture = np.zeros((8, 6, 1), np.uint8)
    assert grey_deviation(picture) == 0
    picture[:4] = 255
    assert grey_deviation(picture) == pytest.approx(0.5)
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 1), dtype=np.uint8)
    assert grey_deviation(noise) == pytest.approx(float((noise / 255).std()))


def test_colours_of_one_lightness_are_nearly_constant() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:2], picture[2:] = (0, 100, 0), (196, 0, 1)  # both of luma 59
    assert grey_deviation(picture) < 0.003
    assert (picture / 255).std() > 0.2


# --- sound ----------------------------------------------------------------------------------------------------


def test_levels_are_those_of_known_signals() -> None:
    time = np.arange(RATE) / RATE
    sine = np.sin(2 * np.pi * 200 * time).astype(np.float32)
    assert peak_level_dbfs(np.ones(RATE, np.float32), 1.0) == pytest.approx(0.0)
    assert peak_level_dbfs(sine, 1.0) == pytest.approx(-3.0103, abs=1e-3)
    assert peak_level_dbfs(0.01 * sine, 1.0) == pytest.approx(-43.0103, abs=1e-3)
    assert peak_level_dbfs(np.zeros(RATE, np.float32), 1.0) == -np.inf


def test_the_loudest_50_ms_count_wherever_they_are_and_short_sounds_whole() -> None:
    window = RATE // 20
    samples = np.zeros(RATE, np.float32)
    samples[1234 : 1234 + window] = 0.5
    assert peak_level_dbfs(samples, 1.0) == pytest.approx(20 * np.log10(0.5))
    samples[:] = 0
    samples[77] = 1  # one full sample in a window of 400
    assert peak_level_dbfs(samples, 1.0) == pytest.approx(10 * np.log10(1 / window))
    assert peak_level_dbfs(np.full(10, 0.1, np.float32), 10 / RATE) == pytest.approx(-20)


def test_clipped_share_counts_full_scale_of_both_signs() -> None:
    assert clipped_share(np.array([0.99, 1, -1, 0], np.float32)) == 0.5
    assert clipped_share(np.array([0.9995, -1.2, 0.998, 0.1], np.float32)) == 0.5
