"""Planted near-duplicates are found, and little else: in corpora made here, and in real ones where there are any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.data.builtin import BUILTINS
from pipeline.data.duplicates.text import MIN_SHINGLED_TOKENS
from pipeline.data.layout import Modality
from tests.conftest import SHARED_DATA
from tests.planted_duplicates import Found, find_planted, near

real_corpora = pytest.mark.skipif(not SHARED_DATA.exists(), reason=f"no real corpora under {SHARED_DATA}")


def planted(originals: list[Any], modality: Modality, share: float = 0.05) -> Found:
    rng = np.random.default_rng(7)
    chosen = rng.choice(len(originals), int(share * len(originals)), replace=False).tolist()
    copies = [near(originals[row], modality, rng) for row in chosen]
    return find_planted(originals, chosen, copies, modality)


def chatter(count: int) -> list[str]:
    """Texts of words as frequent as those of a language (Zipf)."""
    rng = np.random.default_rng(3)
    words = np.array(["".join(rng.choice(list("aeioubdgklmnprst"), rng.integers(2, 9))) for _ in range(3000)])
    return [
        ". ".join(" ".join(words[np.minimum(rng.zipf(1.3, 12), 3000) - 1]) for _ in range(rng.integers(6, 25))) + "."
        for _ in range(count)
    ]


def found_nearly_all(found: Found) -> None:
    assert found.compared == found.planted
    assert found.recall >= 0.95
    assert found.wrong == 0


def test_edited_texts_are_found() -> None:
    found = planted(chatter(800), "text")
    found_nearly_all(found)
    assert found.precision >= 0.98


def test_re_encoded_digits_are_found_and_no_two_digits_are_one() -> None:
    digits = [picture[..., None] for picture, _ in BUILTINS["digits"].items()]  # type: ignore[call-overload]
    found = planted(digits, "image")
    found_nearly_all(found)
    assert len(found.unplanted) == 0


def test_re_encoded_notes_are_found_and_no_two_notes_are_one() -> None:
    notes = [sound for sound, _ in BUILTINS["plucked"].items()]
    found = planted(notes, "audio")
    found_nearly_all(found)
    assert len(found.unplanted) == 0


@real_corpora
def test_passages_and_poems_with_words_changed_are_found() -> None:
    from tests.benchmarks.duplicates import passages, poems

    found = planted(passages(), "text", 0.3)
    found_nearly_all(found)
    assert len(found.unplanted) == 0
    found = planted(poems()[:3000], "text")
    assert found.recall >= 0.95


@real_corpora
def test_names_and_short_captions_merge_only_with_the_same_words() -> None:
    from tests.benchmarks.duplicates import lines

    for name in ("names.txt", "coco_captions/train.txt"):
        texts = [text for text in lines(name) if len(text.split()) < MIN_SHINGLED_TOKENS]
        found = find_planted(texts, [], [], "text")
        assert all(texts[one].split() == texts[other].split() for one, other in found.unplanted)


@real_corpora
def test_recordings_of_the_same_word_by_the_same_speaker_stay_apart() -> None:
    from tests.benchmarks.duplicates import CORPORA

    recordings = CORPORA["fsdd"][1]()[:1500]
    found = planted(recordings, "audio")
    found_nearly_all(found)
    assert len(found.unplanted) == 0
