"""Cleaning: what it takes away, and what it leaves alone."""

from __future__ import annotations

import unicodedata

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.cleaning import clean, clean_text


def test_control_characters_go_and_line_ends_are_one() -> None:
    assert clean_text("\ufeffa\x00b\x07\r\nc\rd\te") == "ab\nc\nd\te"


def test_composed_and_decomposed_letters_become_the_same() -> None:
    assert clean_text("e\u0301") == "\xe9"


@given(st.text())
def test_cleaning_twice_changes_nothing_more_and_the_result_is_utf8(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once
    assert unicodedata.is_normalized("NFC", once)
    once.encode("utf-8")


def test_empty_texts_and_sounds_are_dropped_with_a_reason() -> None:
    assert clean(" \n\x00")[1] == "empty text"
    assert clean(np.zeros(0, np.float32))[1] == "no samples"
    assert clean(np.zeros(1, np.float32))[1] is None
