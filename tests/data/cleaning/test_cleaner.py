"""The cleaner: which steps run in which order, what they take away, and why a record is dropped."""

from __future__ import annotations

import pickle
import subprocess
import sys
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.cleaning import REASONS, BlockList, Cleaned, Lists, OptOut, make_cleaner
from pipeline.data.records import content_id
from pipeline.errors import SpecError
from pipeline.spec import AudioCleaningSpec, CleaningSpec, ImageCleaningSpec, TextCleaningSpec

ENGLISH = "It was the best of times, it was the worst of times, it was the age of wisdom."


def clean_one(text: str, lists: Lists = Lists(), **steps: Any) -> Cleaned:  # noqa: B008
    return make_cleaner(CleaningSpec(text=TextCleaningSpec(**steps)), "text", lists)(text, {})


def clean_text(text: str) -> str:
    """`text` after the default steps."""
    return str(clean_one(text).raw)


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
    assert clean_one(" \n\x00").dropped == "empty text"
    sounds = make_cleaner(CleaningSpec(), "audio", Lists())
    assert sounds(np.zeros(0, np.float32), {}).dropped == "no samples"
    assert sounds(np.zeros(1, np.float32), {}).dropped is None


def test_steps_that_change_a_text_are_named_in_their_order() -> None:
    cleaned = clean_one("schÃ¶n\r\ne\x00\u0301 a@b.de", unicode="ftfy", personal_data="mask")
    assert cleaned == Cleaned(
        "schön\né [email]",
        changed=("encoding", "line ends", "control characters", "unicode", "personal data"),
        personal={"email": 1},
    )
    assert clean_one(ENGLISH, unicode="ftfy", personal_data="mask") == Cleaned(ENGLISH)
    assert clean_one("e\u0301\x07", unicode="keep", remove_control=False).raw == "e\u0301\x07"


@pytest.mark.parametrize(
    ("text", "steps", "reason", "detail"),
    [
        ("  \n", {}, "empty text", "3 characters, all of them white space"),
        ("abc", {"min_characters": 4}, "too short", "3 characters, at least 4 allowed"),
        ("a" * 5, {"max_characters": 4}, "too long", "5 characters, at most 4 allowed"),
        ("ab\n" * 4, {"max_repeated": 0.3}, "repetition", "0.75 of the characters are repeated, allowed 0.3"),
        ("a#!?", {"max_symbols": 0.5}, "symbols", "0.75 of the characters are symbols, allowed 0.5"),
        (ENGLISH, {"languages": ("de", "fr")}, "language", "en, allowed de, fr"),
        ("a@b.de, c@d.de", {"personal_data": "drop"}, "personal data", "2 email"),
    ],
)
def test_a_text_is_dropped_for_a_reason_and_told_the_measure(
    text: str, steps: dict[str, Any], reason: str, detail: str
) -> None:
    cleaned = clean_one(text, **steps)
    assert (cleaned.dropped, cleaned.detail) == (reason, detail)
    assert reason in REASONS


@pytest.mark.parametrize(
    "steps",
    [
        {"min_characters": 4, "max_characters": 4},
        {"max_repeated": 0.75, "max_symbols": 0.75},
        {"languages": ("en",)},
        {"personal_data": "drop", "personal_data_kinds": ("card",)},
    ],
)
def test_what_is_just_allowed_is_kept(steps: dict[str, Any]) -> None:
    assert clean_one("a#!?", **steps).dropped is None


def test_lists_drop_what_is_on_them_also_after_masking() -> None:
    lists = Lists(OptOut(frozenset({content_id("mail [email] now")})), BlockList(frozenset({"bad word"})))
    assert clean_one("mail a@b.de now", lists, personal_data="mask").dropped == "opt-out"
    assert clean_one("mail a@b.de now", lists).dropped is None
    cleaned = clean_one("a Bad Word.", lists)
    assert (cleaned.dropped, cleaned.detail) == ("block list", "'bad word' is in it")


def test_pictures_are_dropped_by_the_size_of_their_file_and_their_contrast() -> None:
    cleaner = make_cleaner(CleaningSpec(image=ImageCleaningSpec(min_side=32, min_contrast=0.1)), "image", Lists())
    flat = np.full((40, 40, 3), 128, np.uint8)
    halves = flat.copy()
    halves[:20], halves[20:] = 0, 255
    assert cleaner(halves, {"width": 640, "height": 480}).dropped is None
    tiny = cleaner(halves, {"width": 640, "height": 31})
    assert (tiny.dropped, tiny.detail) == ("tiny picture", "640×31 pixels: a side of 31, at least 32 allowed")
    assert cleaner(flat, {"width": 640, "height": 480}).dropped == "near-constant picture"
    assert make_cleaner(CleaningSpec(), "image", Lists())(flat, {}).dropped is None


@pytest.mark.parametrize(
    ("samples", "steps", "reason"),
    [
        (np.full(4000, 0.5), {"min_seconds": 0.6}, "too short"),
        (np.full(4000, 0.5), {"max_seconds": 0.4}, "too long"),
        (np.full(4000, 0.0009), {"min_level_dbfs": -60}, "silence"),
        (np.where(np.arange(4000) % 4 == 0, 1.0, 0.1), {"max_clipped": 0.2}, "clipping"),
        (np.full(4000, 0.5), {"min_seconds": 0.5, "max_seconds": 0.5, "min_level_dbfs": -7, "max_clipped": 0.2}, None),
    ],
)
def test_sounds_are_dropped_by_length_level_and_clipping(
    samples: np.ndarray, steps: dict[str, Any], reason: str | None
) -> None:
    cleaner = make_cleaner(CleaningSpec(audio=AudioCleaningSpec(**steps)), "audio", Lists())
    cleaned = cleaner(samples.astype(np.float32), {"seconds": 0.5})
    assert cleaned.dropped == reason
    assert (cleaned.detail is None) == (reason is None)


def test_a_cleaner_travels_to_a_worker_and_unknown_languages_are_refused() -> None:
    cleaner = make_cleaner(CleaningSpec(), "text", Lists(OptOut(frozenset({"0" * 16}))))
    assert pickle.loads(pickle.dumps(cleaner)) == cleaner
    with pytest.raises(SpecError, match="xx cannot be told"):
        make_cleaner(CleaningSpec(text=TextCleaningSpec(languages=("xx",))), "text", Lists())


def test_packages_of_steps_that_are_off_are_not_imported() -> None:
    code = (
        "import sys; from pipeline.data.cleaning import Lists, make_cleaner; from pipeline.spec import CleaningSpec;"
        "make_cleaner(CleaningSpec(), 'text', Lists())('a text of 1999, tel. 020 7946 0958', {});"
        "print([name for name in ('ftfy', 'phonenumbers', 'stdnum', 'py3langid', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
