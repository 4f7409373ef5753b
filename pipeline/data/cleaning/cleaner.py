"""The cleaner: the steps of a modality in their order, from a decoded record to what becomes of it.

Runs in Ray Data's workers, on one raw record at a time; a plain dataclass of configuration, so it can be sent there.
What is dropped is told by a reason of `REASONS`, so that it can be counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.data.cleaning.audio import clipped_share, peak_level_dbfs
from pipeline.data.cleaning.image import grey_deviation
from pipeline.data.cleaning.language import check_languages, language_of
from pipeline.data.cleaning.lists import Lists
from pipeline.data.cleaning.personal_data import find_personal_data, mask_personal_data
from pipeline.data.cleaning.text import (
    compose,
    remove_control,
    repair_encoding,
    repeated_share,
    symbol_share,
    unify_line_ends,
)
from pipeline.data.layout import Modality
from pipeline.spec import AudioCleaningSpec, CleaningSpec, ImageCleaningSpec, TextCleaningSpec

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Cleaned:
    """What became of a record: `raw` after the repairs, why it is `dropped` (of `REASONS`) or None and the `detail` of
    that, the names of the steps that `changed` it, and how much `personal` data of each kind was found (and masked,
    or the reason to drop it)."""

    raw: Any
    dropped: str | None = None
    detail: str | None = None
    changed: tuple[str, ...] = ()
    personal: dict[str, int] = field(default_factory=dict)


# --- the steps, in their order --------------------------------------------------------------------------------

# The characters are composed last: what stood between a letter and its accent may be gone only then.
TEXT_REPAIRS: tuple[tuple[str, Callable[[TextCleaningSpec], bool], Callable[[str], str]], ...] = (
    ("encoding", lambda spec: spec.unicode == "ftfy", repair_encoding),
    ("line ends", lambda spec: True, unify_line_ends),
    ("control characters", lambda spec: spec.remove_control, remove_control),
    ("unicode", lambda spec: spec.unicode != "keep", compose),
)
PERSONAL_DATA = "personal data"


def _empty_text(text: str, spec: TextCleaningSpec, lists: Lists) -> str | None:
    return None if text.strip() else f"{len(text):,} characters, all of them white space"


def _opted_out(text: str, spec: TextCleaningSpec, lists: Lists) -> str | None:
    return "its sha256 is on the list" if lists.opt_out.has_text(text) else None


def _blocked(text: str, spec: TextCleaningSpec, lists: Lists) -> str | None:
    phrase = lists.block_list.find(text)
    return None if phrase is None else f"{phrase!r} is in it"


def _too_short_text(text: str, spec: TextCleaningSpec, lists: Lists) -> str | None:
    return _below(len(text), spec.min_characters, "{:,} characters, at least {:,} allowed")


def _too_long_text(text: str, spec: TextCleaningSpec, lists: Lists) -> str | None:
    return _above(len(text), spec.max_characters, "{:,} characters, at most {:,} allowed")


def _repetition(text: str, spec: TextCleaningSpec, lists: Lists) -> str | None:
    if spec.max_repeated is None:
        return None
    return _above(repeated_share(text), spec.max_repeated, "{:.2f} of the characters are repeated, allowed {:g}")


def _symbols(text: str, spec: TextCleaningSpec, lists: Lists) -> str | None:
    if spec.max_symbols is None:
        return None
    return _above(symbol_share(text), spec.max_symbols, "{:.2f} of the characters are symbols, allowed {:g}")


def _language(text: str, spec: TextCleaningSpec, lists: Lists) -> str | None:
    found = language_of(text) if spec.languages else None
    return None if found is None or found in spec.languages else f"{found}, allowed {', '.join(spec.languages)}"


TextTest = Callable[[str, TextCleaningSpec, Lists], str | None]

TEXT_TESTS: tuple[tuple[str, TextTest], ...] = (
    ("empty text", _empty_text),
    ("opt-out", _opted_out),
    ("block list", _blocked),
    ("too short", _too_short_text),
    ("too long", _too_long_text),
    ("repetition", _repetition),
    ("symbols", _symbols),
    ("language", _language),
)
PROMPT_TESTS: tuple[tuple[str, TextTest], ...] = (("block list", _blocked),)


def _tiny_picture(picture: np.ndarray, facts: Facts, spec: ImageCleaningSpec) -> str | None:
    width, height = facts.get("width", picture.shape[1]), facts.get("height", picture.shape[0])
    return _below(
        min(width, height), spec.min_side, f"{width:,}×{height:,} pixels: a side of {{:,}}, at least {{:,}} allowed"
    )


def _near_constant_picture(picture: np.ndarray, facts: Facts, spec: ImageCleaningSpec) -> str | None:
    if not spec.min_contrast:
        return None
    deviation = grey_deviation(picture)
    return _below(
        deviation, spec.min_contrast, "grey levels with a standard deviation of {:.4f}, at least {:g} allowed"
    )


IMAGE_TESTS: tuple[tuple[str, Callable[[np.ndarray, Facts, ImageCleaningSpec], str | None]], ...] = (
    ("tiny picture", _tiny_picture),
    ("near-constant picture", _near_constant_picture),
)


def _no_samples(samples: np.ndarray, facts: Facts, spec: AudioCleaningSpec) -> str | None:
    return None if len(samples) else "0 samples"


def _too_short_sound(samples: np.ndarray, facts: Facts, spec: AudioCleaningSpec) -> str | None:
    if not spec.min_seconds:
        return None
    return _below(facts["seconds"], spec.min_seconds, "{:.3g} s, at least {:g} s allowed")


def _too_long_sound(samples: np.ndarray, facts: Facts, spec: AudioCleaningSpec) -> str | None:
    if spec.max_seconds is None:
        return None
    return _above(facts["seconds"], spec.max_seconds, "{:.3g} s, at most {:g} s allowed")


def _silence(samples: np.ndarray, facts: Facts, spec: AudioCleaningSpec) -> str | None:
    if spec.min_level_dbfs is None:
        return None
    level = peak_level_dbfs(samples, facts["seconds"])
    return _below(level, spec.min_level_dbfs, "its loudest 50 ms are at {:.1f} dBFS, at least {:g} allowed")


def _clipping(samples: np.ndarray, facts: Facts, spec: AudioCleaningSpec) -> str | None:
    if spec.max_clipped is None:
        return None
    return _above(clipped_share(samples), spec.max_clipped, "{:.3f} of the samples are at full scale, allowed {:g}")


AUDIO_TESTS: tuple[tuple[str, Callable[[np.ndarray, Facts, AudioCleaningSpec], str | None]], ...] = (
    ("no samples", _no_samples),
    ("too short", _too_short_sound),
    ("too long", _too_long_sound),
    ("silence", _silence),
    ("clipping", _clipping),
)

REASONS: tuple[str, ...] = tuple(
    dict.fromkeys([PERSONAL_DATA, *(name for name, _ in (*TEXT_TESTS, *IMAGE_TESTS, *AUDIO_TESTS))])
)
"""Every reason to drop a record, of all modalities. `opt-out` is also what the driver's own look at the list gives."""


def _below(value: float, limit: float, detail: str) -> str | None:
    return detail.format(value, limit) if value < limit else None


def _above(value: float, limit: float | None, detail: str) -> str | None:
    return detail.format(value, limit) if limit is not None and value > limit else None


# --- the cleaner ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cleaner:
    """Cleans raw records of one modality; `make_cleaner` makes one."""

    spec: CleaningSpec
    modality: Modality
    lists: Lists

    def __call__(self, raw: Any, facts: Facts) -> Cleaned:
        """What becomes of a text, a picture uint8 `[H, W, C]` or sound float32 `[T]`; of `facts`, pictures may have the
        file's `width` and `height`, and sounds must have `seconds` where a length or a level is asked for."""
        if self.modality == "text":
            return self._clean_text(raw)
        if self.modality == "image":
            return Cleaned(raw, *_first((name, test(raw, facts, self.spec.image)) for name, test in IMAGE_TESTS))
        return Cleaned(raw, *_first((name, test(raw, facts, self.spec.audio)) for name, test in AUDIO_TESTS))

    def clean_prompt(self, prompt: str) -> Cleaned:
        """What becomes of the text prompt of a record of any modality: repaired, its personal data masked or a reason
        to drop the record, and so is a phrase of the block list. The measures of a whole text are not taken of it."""
        return self._clean_text(prompt, PROMPT_TESTS)

    def _clean_text(self, text: str, tests: Iterable[tuple[str, TextTest]] = TEXT_TESTS) -> Cleaned:
        spec = self.spec.text
        changed: list[str] = []
        for name, is_wanted, repair in TEXT_REPAIRS:
            repaired = repair(text) if is_wanted(spec) else text
            if repaired is not text and repaired != text:
                changed.append(name)
            text = repaired
        personal: dict[str, int] = {}
        if spec.personal_data == "mask":
            text, personal = mask_personal_data(text, spec.personal_data_kinds)
            changed += [PERSONAL_DATA] if personal else []
        elif spec.personal_data == "drop":
            personal = dict(Counter(finding.kind for finding in find_personal_data(text, spec.personal_data_kinds)))
            if personal:
                counts = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in personal.items())
                return Cleaned(text, PERSONAL_DATA, counts, tuple(changed), personal)
        dropped, detail = _first((name, test(text, spec, self.lists)) for name, test in tests)
        return Cleaned(text, dropped, detail, tuple(changed), personal)


def _first(tested: Iterable[tuple[str, str | None]]) -> tuple[str | None, str | None]:
    """The name and the detail of the first test that drops a record; the later ones are not run."""
    return next(((name, detail) for name, detail in tested if detail is not None), (None, None))


def make_cleaner(spec: CleaningSpec, modality: Modality, lists: Lists) -> Cleaner:
    """The cleaner of a modality; `lists` as `read_lists(spec)` gives them.

    Raises: SpecError when a language is asked for that cannot be told.
    """
    if modality == "text":
        check_languages(spec.text.languages)
    return Cleaner(spec, modality, lists)
