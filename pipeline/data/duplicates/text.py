"""Signatures of texts: MinHash (Broder 1997) over shingles of three words, so that edited copies of a text are found.

NumPy, in whichever worker reads the corpus. All of it is integers, and which character parts words is Unicode 3.2's
rule, which Python carries for good: a signature once stored is what will be computed again.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

import numpy as np

VALUES = 64
SIGNATURE_BYTES = 2 * VALUES
SHINGLE = 3
"""With 5–10% of the words of 1–2 kB edited, the similarity of three-word shingles is above 0.55 for 99 of 100 texts, of
five-word ones above 0.35; for texts that are not copies both are next to 0."""
ROWS_PER_BAND = 3
BANDS = VALUES // ROWS_PER_BAND
MIN_TOKENS = 8
MIN_SHINGLED_TOKENS = 16
"""A text between these two lengths is one shingle: near are only texts of the same words, since one word is much of a
caption. A Chinese quatrain, of 20 characters at least, is above."""
SHINGLES_AT_ONCE = 4096
CHARACTERS_AT_ONCE = 65536
"""Bounds the memory for a text of any length; a word that lies across two blocks counts as two."""

_MULTIPLIER = 0x9E3779B97F4A7C15
_SHINGLE_FACTORS = np.array(
    [pow(0xD6E8FEB86659FD93, 1 + place, 2**64) for place in range(MIN_SHINGLED_TOKENS)], np.uint64
)
_NO_TOKENS = np.zeros(0, np.uint64)
_SPACE, _LETTER, _IDEOGRAM, _NOTHING = range(4)
_UNSEGMENTED = (
    *((0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800)),  # Thai and Lao, Burmese, Khmer
    *((0x2E80, 0x2FE0), (0x3005, 0x3008), (0x3040, 0x3100), (0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000)),
    *((0xF900, 0xFB00), (0x20000, 0x40000)),  # Han and kana
)
"""Scripts that do not part words by spaces: here each character is a word."""
_ASCII = bytes(code | 0x20 * chr(code).isupper() if chr(code).isalnum() else 32 for code in range(128)) + bytes(128)


def sign(text: str) -> bytes:
    """The signature of `text`: `VALUES` least hashes of its shingles under as many permutations, 16 bits of each
    (b-bit minwise hashing, Li and König 2010); empty when it has fewer than `MIN_TOKENS` words.

    Case, punctuation, white space and forms of the same character (NFKC) do not count.
    """
    return sign_batch([text])[0]


def sign_batch(texts: Sequence[str]) -> list[bytes]:
    """The signature of each of `texts`; many short ones at once, which is twice as fast."""
    signed: list[bytes] = []
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= CHARACTERS_AT_ONCE:
            signed += _sign_group(group)
            group, size = [], 0
    return signed + _sign_group(group)


def _sign_group(texts: Sequence[str]) -> list[bytes]:
    tokens = _tokens_of_each(texts)
    sizes = np.array([len(each) for each in tokens], np.int64)
    least = np.zeros((len(texts), VALUES), np.uint32)
    together = np.flatnonzero((sizes >= MIN_SHINGLED_TOKENS) & (sizes <= SHINGLES_AT_ONCE))
    if len(together):
        hashes = _shingle_hashes(np.concatenate([tokens[row] for row in together]), SHINGLE)
        ends = np.cumsum(sizes[together])
        for row, start, end in zip(together, ends - sizes[together], ends, strict=True):
            least[row] = (_permutations() * hashes[start : end - SHINGLE + 1]).min(axis=1)
    for row in np.flatnonzero((sizes >= MIN_TOKENS) & ~np.isin(np.arange(len(texts)), together)):
        least[row] = _least_alone(tokens[row])
    # The least of many has zeros on top: the product's upper half depends on all bits.
    least *= np.uint32(_MULTIPLIER & 0xFFFFFFFF | 1)
    values = (least >> np.uint32(16)).astype("<u2")
    return [row.tobytes() if size >= MIN_TOKENS else b"" for row, size in zip(values, sizes, strict=True)]


def _least_alone(tokens: np.ndarray) -> np.ndarray:
    """The least hashes of one text of any length, uint32 `[VALUES]`, a bounded number of shingles at a time."""
    size = SHINGLE if len(tokens) >= MIN_SHINGLED_TOKENS else len(tokens)
    least = np.full(VALUES, 2**32 - 1, np.uint32)
    for start in range(0, len(tokens) - size + 1, SHINGLES_AT_ONCE):
        shingles = _shingle_hashes(tokens[start : start + SHINGLES_AT_ONCE + size - 1], size)
        np.minimum(least, (_permutations() * shingles).min(axis=1), out=least)
    return least


def band_keys(signatures: np.ndarray, band: int) -> np.ndarray:
    """uint8 `[N, SIGNATURE_BYTES]` → uint64 `[N, 2]`: three values of each signature, and the next three to order
    those that agree in them."""
    values = np.ascontiguousarray(signatures).view("<u2")
    keys = []
    for first in (band, (band + 1) % BANDS):
        rows = values[:, first * ROWS_PER_BAND : (first + 1) * ROWS_PER_BAND].astype(np.uint64)
        keys.append(rows[:, 0] << np.uint64(32) | rows[:, 1] << np.uint64(16) | rows[:, 2])
    return np.stack(keys, axis=1)


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The Jaccard similarity of the shingles of each pair, float32 `[P]`, estimated by the share of equal values, from
    uint8 `[P, SIGNATURE_BYTES]` each."""
    first, second = np.ascontiguousarray(first), np.ascontiguousarray(second)
    return np.asarray((first.view("<u2") == second.view("<u2")).mean(axis=1), np.float32)


def _tokens_of_each(texts: Sequence[str]) -> list[np.ndarray]:
    """A hash of each word of each text in order, uint64 `[words]` a text."""
    tokens = [_NO_TOKENS] * len(texts)
    plain = [row for row, text in enumerate(texts) if text.isascii() and len(text) <= CHARACTERS_AT_ONCE]
    if plain:
        codes = [texts[row].encode("ascii").translate(_ASCII, b"'") for row in plain]
        ends = np.cumsum([len(each) + 1 for each in codes])
        starts, hashes = _hashes_of_words(*_ascii_words(b" ".join(codes)))
        for row, found in zip(plain, np.split(hashes, np.searchsorted(starts, ends[:-1])), strict=True):
            tokens[row] = found
    for row in set(range(len(texts))) - set(plain):
        text = texts[row]
        blocks = [text[at : at + CHARACTERS_AT_ONCE] for at in range(0, len(text), CHARACTERS_AT_ONCE)]
        tokens[row] = np.concatenate([_hashes_of_words(*_words(block))[1] for block in blocks])
    return tokens


def _ascii_words(codes: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_words` of what `_ASCII` made of a text."""
    points = np.frombuffer(codes, np.uint8)
    inside = points != 32
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    return points, inside, begins


def _words(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The code points that count, integers `[n]`; which are of words, and which begin one, bool `[n]`."""
    if text.isascii():
        return _ascii_words(text.encode("ascii").translate(_ASCII, b"'"))
    folded = unicodedata.normalize("NFKC", text).casefold()
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32)
    classes = _character_classes()[codes]
    codes, classes = codes[classes != _NOTHING], classes[classes != _NOTHING]
    begins = classes == _IDEOGRAM
    before = np.concatenate(([_SPACE], classes[:-1]))
    begins |= (classes == _LETTER) & (before != _LETTER)
    return codes, classes != _SPACE, begins


def _hashes_of_words(codes: np.ndarray, inside: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words begin, int64 `[words]`, and a hash of each, uint64 `[words]`: a polynomial in its code points, modulo
    2^64."""
    starts = np.flatnonzero(begins)
    if len(starts) == 0:
        return starts, _NO_TOKENS
    powers, inverses = _powers(len(codes).bit_length())
    terms = (codes * inside) * powers[: len(codes)]
    # What stands before the first word is zeros; dividing by the power at its start makes a word its own wherever.
    return starts, np.asarray(np.add.reduceat(terms, starts) * inverses[starts], np.uint64)


def _shingle_hashes(tokens: np.ndarray, size: int) -> np.ndarray:
    """A well-mixed hash of every `size` tokens in a row, uint32 `[tokens - size + 1]`."""
    count = len(tokens) - size + 1
    hashes = np.zeros(count, np.uint64)
    for place in range(size):
        hashes += tokens[place : place + count] * _SHINGLE_FACTORS[place]
    return np.asarray(_mixed(hashes) >> np.uint64(32), np.uint32)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3 (Appleby 2011), a bijection of uint64 in which every bit depends on all."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


@functools.cache
def _permutations() -> np.ndarray:
    """Odd factors, uint32 `[VALUES, 1]`: multiplying by one permutes the 32-bit integers."""
    hashes = _mixed(np.arange(1, VALUES + 1, dtype=np.uint64) * np.uint64(_MULTIPLIER))
    return ((hashes >> np.uint64(32)).astype(np.uint32) | np.uint32(1))[:, None]


@functools.cache
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """`_MULTIPLIER` to the powers 0 … 2^bits - 1, and their inverses modulo 2^64."""
    bases = (_MULTIPLIER, pow(_MULTIPLIER, -1, 2**64))
    tables = [np.multiply.accumulate(np.array([1] + [base] * (2**bits - 1), np.uint64)) for base in bases]
    return tables[0], tables[1]


@functools.cache
def _character_classes() -> np.ndarray:
    """What each code point is to words, uint8 `[0x110000]`: letters, digits, marks and what Unicode 3.2 did not know
    are of words; apostrophes and invisible format characters are nothing."""
    classes = np.full(0x110000, _LETTER, np.uint8)
    category = unicodedata.ucd_3_2_0.category
    for code in range(0x20000):
        kind = category(chr(code))
        if kind == "Cf":
            classes[code] = _NOTHING
        elif kind[0] in "PSZ" or kind == "Cc":
            classes[code] = _SPACE
    for first, end in _UNSEGMENTED:
        part = classes[first:end]
        part[part == _LETTER] = _IDEOGRAM
    classes[[0x27, 0x2019]] = _NOTHING
    return classes
