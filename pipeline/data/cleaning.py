"""Cleaning: small pure steps between a decoded record and its codec.

Runs in Ray Data's workers, on one raw record at a time; what is dropped is counted by its reason.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import numpy as np

# NUL and the other control characters but tab and newline, lone surrogates, and a byte-order mark.
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")


def clean(raw: Any) -> tuple[Any, str | None]:
    """`raw` cleaned, and the reason to drop it or None; pictures pass as they are."""
    if isinstance(raw, str):
        text = clean_text(raw)
        return text, None if text.strip() else "empty text"
    if isinstance(raw, np.ndarray) and raw.size == 0:
        return raw, "no samples"
    return raw, None


def clean_text(text: str) -> str:
    """`text` in Unicode's composed form (NFC), with newlines for line ends and no control characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", _UNWANTED.sub("", text))
