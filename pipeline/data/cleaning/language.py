"""Which language a text is in, by py3langid, whose model is in the package: without a network, the same everywhere."""

from __future__ import annotations

from functools import cache
from typing import Any

from pipeline.errors import SpecError

MIN_LETTERS = 24
"""Texts with fewer letters are kept whatever their language: too little to tell it by."""
MAX_CHARACTERS = 8192
"""What is read of a longer text, from its middle: its beginning is often a licence or a title."""


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of the language that is most likely that of `text`, or None where it is too short to tell."""
    start = max(0, (len(text) - MAX_CHARACTERS) // 2)
    sample = text[start : start + MAX_CHARACTERS]
    if sum(map(str.isalpha, sample)) < MIN_LETTERS:
        return None
    return str(_identifier().classify(sample)[0])


def check_languages(languages: tuple[str, ...]) -> None:
    """Raises: SpecError when a language is none that can be told."""
    if languages:
        known = sorted(_identifier().labels)
        unknown = [language for language in languages if language not in known]
        if unknown:
            raise SpecError(
                f"data.cleaning.text.languages: {', '.join(unknown)} cannot be told; allowed are {', '.join(known)}"
            )


@cache
def _identifier() -> Any:
    """The model, 1 s to load and 5 MB."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
