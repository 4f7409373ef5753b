"""Words of a text: what the block list, the repetition measure and the language rule count in."""

from __future__ import annotations

import re

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Character ranges of scripts that put no space between words: Thai, Lao, Burmese, Khmer, kana and Chinese."""

_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_ASCII_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The runs of letters, digits and underscores of `text`; where a script has no spaces, each character is a word."""
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text)
