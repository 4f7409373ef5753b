"""Steps on texts: repairs from text to text, and measures of how much of a text is repeated or no language.

Pure functions on one text; `cleaner` says in which order they come and what is dropped for them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

import numpy as np

from pipeline.data.cleaning.words import words_of

# NUL and the other control characters but tab and newline, lone surrogates, and a byte-order mark.
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")
_ASCII_UNWANTED = bytes([*range(0x09), *range(0x0B, 0x20), 0x7F])
_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")

TOP_PHRASE_WORDS = (2, 3, 4)
PHRASE_WORDS = 5


def repair_encoding(text: str) -> str:
    """`text` with what was decoded as the wrong encoding put right (ftfy): `schÃ¶n` becomes `schön`.

    Only that: quotes stay curled, ligatures, full-width letters, HTML entities, line ends and control characters stay
    as they are, since changing them would say something about style, or is the business of other steps.
    """
    if text.isascii():  # nothing was decoded wrongly; ftfy itself reads 3 MB/s
        return text
    import ftfy

    return ftfy.fix_text(
        text,
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        explain=False,
    )


def unify_line_ends(text: str) -> str:
    """`text` with a newline for each line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def remove_control(text: str) -> str:
    """`text` without control characters but tab and newline, lone surrogates and byte-order marks."""
    if text.isascii():  # eight times as fast as the pattern
        kept = text.encode("ascii").translate(None, _ASCII_UNWANTED)
        return text if len(kept) == len(text) else kept.decode("ascii")
    return _UNWANTED.sub("", text)


def compose(text: str) -> str:
    """`text` in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text)


def repeated_share(text: str) -> float:
    """How much of `text` says again what it has said, in [0, 1], after Rae et al. 2021, Table A1 (Gopher).

    The largest of these shares of characters: of lines, and of paragraphs, that were there before (white space not
    counted); of the one phrase of 2, 3 or 4 words that covers most; of phrases of 5 words that were there before. Of
    everything repeated the first time does not count, and no character counts twice. Phrases are counted in characters
    of words. Gopher's phrases of 6 to 10 words are made of repeated ones of 5, so theirs is never the largest share.
    """
    lines = _share_seen_before(line.strip() for line in text.split("\n"))
    paragraphs = _share_seen_before(paragraph.strip() for paragraph in _PARAGRAPH_END.split(text))
    words = words_of(text)
    if not words:
        return max(lines, paragraphs)
    numbers: dict[str, int] = {}
    word = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.uint64)
    length = np.array([len(word) for word in words], np.int64)
    phrases = [_share_of_top_phrase(word, length, count) for count in TOP_PHRASE_WORDS]
    return max(lines, paragraphs, *phrases, _share_of_phrases(word, length, PHRASE_WORDS))


def _share_seen_before(parts: Iterable[str]) -> float:
    counts = Counter(part for part in parts if part)
    again = sum((count - 1) * len(part) for part, count in counts.items())
    return again / max(1, sum(count * len(part) for part, count in counts.items()))


def _phrases(word: np.ndarray, count: int) -> np.ndarray:
    """A number for each run of `count` words, uint64 `[N - count + 1]`: a polynomial modulo 2^64, where two phrases of
    a text meet with a chance of about N² / 2^65."""
    key = np.zeros(max(0, len(word) - count + 1), np.uint64)
    for place in range(count):
        key = key * np.uint64(0x9E3779B97F4A7C15) + word[place : place + len(key)] + np.uint64(1)
    return key


def _share_covered(starts: np.ndarray, length: np.ndarray, count: int) -> float:
    """The share of the characters that the phrases of `count` words at `starts` cover together."""
    edges = np.zeros(len(length) + 1, np.int64)
    edges[starts] += 1
    edges[starts + count] -= 1
    return float(length[np.cumsum(edges[:-1]) > 0].sum() / length.sum())


def _share_of_top_phrase(word: np.ndarray, length: np.ndarray, count: int) -> float:
    keys, first, which, times = np.unique(
        _phrases(word, count), return_index=True, return_inverse=True, return_counts=True
    )
    if not len(keys) or times.max() == 1:
        return 0.0
    ends = np.concatenate([[0], np.cumsum(length)])
    top = int(np.argmax((times - 1) * (ends[first + count] - ends[first])))
    return _share_covered(np.flatnonzero(which == top)[1:], length, count)


def _share_of_phrases(word: np.ndarray, length: np.ndarray, count: int) -> float:
    keys = _phrases(word, count)
    again = np.ones(len(keys), bool)
    again[np.unique(keys, return_index=True)[1]] = False
    return _share_covered(np.flatnonzero(again), length, count)


def symbol_share(text: str) -> float:
    """The share of the characters of `text` that are neither letter, digit, mark nor space, in [0, 1]."""
    if text.isascii():  # thirty times as fast as looking at each character
        return len(text.encode("ascii").translate(None, _ASCII_NO_SYMBOLS)) / max(1, len(text))
    symbols = sum(count for character, count in Counter(text).items() if _is_symbol(character))
    return symbols / max(1, len(text))


def _is_symbol(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character)[0] not in "LNMZ"


_ASCII_NO_SYMBOLS = bytes(code for code in range(128) if not _is_symbol(chr(code)))
