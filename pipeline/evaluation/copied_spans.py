"""What texts take word for word from the training split: copied n-grams, longest spans, and where they come from.

NumPy, on the driver. The training split is read batch by batch and not kept: beside a batch, memory is some 400 bytes
for each character of the texts that are asked about, whatever the size of the split. Hashes only say where to look;
every match is compared character by character, so the answers are exact.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.suffixes import SuffixAutomaton
from pipeline.evaluation.tokens import mostly_unspaced

EDGE = 0x110000
"""Stands where a whole record begins and ends, one above all characters: a short record is then an n-gram itself."""
MOST_CHARACTERS, MOST_UNSPACED, FEWEST = 40, 12, 6
"""Characters of a copied n-gram, where there are spaces between words (some eight words) and where there are none, and
at least: what is shorter, honest texts share as well."""
TABLE_BITS = 24
COMPARED_AT_ONCE = 2**15
CHARACTERS_AT_ONCE = 2**20
RUNS_REMEMBERED = 10_000


def gram_length(texts: Sequence[str]) -> int:
    """Characters of the n-grams that count as copied, from held-out texts: 40 (12 in a script without spaces between
    words), or half the median text where that is shorter; at least 6."""
    most = MOST_UNSPACED if mostly_unspaced(texts) else MOST_CHARACTERS
    return max(FEWEST, min(most, int(statistics.median([len(text) for text in texts] or [0])) // 2))


def codes_of(text: str, whole: bool) -> np.ndarray:
    """The code points of a text, uint32 `[any]`, between two `EDGE`s where it is a whole record."""
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    return np.concatenate([[EDGE], codes, [EDGE]]).astype(np.uint32) if whole else codes


def window_hashes(codes: np.ndarray, n: int, base: int = 0x9E3779B97F4A7C15) -> np.ndarray:
    """A hash of every `n` consecutive codes, uint64 `[max(0, len - n + 1)]`: their polynomial in `base` modulo 2^64
    (Karp and Rabin 1987), by doubling, with its bits mixed."""
    if len(codes) < n:
        return np.zeros(0, np.uint64)
    power, width = np.uint64(base | 1), 1
    doubled = (codes.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    doubled ^= doubled >> np.uint64(32)
    result, done = np.zeros(len(codes), np.uint64), 0
    with np.errstate(over="ignore"):
        while True:
            if n & width:
                kept = len(codes) - done - width + 1
                result = result[:kept] * power + doubled[done : done + kept]
                done += width
            if done == n:
                break
            doubled = doubled[:-width] * power + doubled[width:]
            power, width = power * power, 2 * width
    result ^= result >> np.uint64(29)
    result *= np.uint64(0xBF58476D1CE4E5B9)
    return result


@dataclass(frozen=True)
class Copies:
    """What texts have in common with the training split, for each of N texts.

    `length` is n; `copied` are N masks over the places at which an n-gram of the text starts, True where it occurs in
    the training split; `longest` int64 `[N, 2]`, the start and the characters of the longest span that does (0 and 0
    where it is shorter than n). Places count `EDGE`s where the texts are whole records.
    """

    length: int
    whole: bool
    copied: list[np.ndarray]
    longest: np.ndarray

    @property
    def grams(self) -> np.ndarray:
        """N-grams of each text, float64 `[N]`."""
        return np.array([len(mask) for mask in self.copied], np.float64)

    @property
    def num_copied(self) -> np.ndarray:
        """Copied n-grams of each text, float64 `[N]`."""
        return np.array([mask.sum() for mask in self.copied], np.float64)

    def part(self, start: int, stop: int) -> Copies:
        """Those of the texts from `start` to before `stop`."""
        return Copies(self.length, self.whole, self.copied[start:stop], self.longest[start:stop])

    def marks(self, text: int, characters: int) -> list[tuple[int, int]]:
        """The spans of a text of so many characters that are covered by copied n-grams: start and stop of each."""
        covered = np.zeros(characters + 2 * self.whole + 1, np.int64)
        starts = np.flatnonzero(self.copied[text])
        np.add.at(covered, starts, 1)
        np.add.at(covered, starts + self.length, -1)
        inside = np.cumsum(covered)[:-1] > 0
        inside = inside[1:-1] if self.whole else inside
        changes = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
        return [(int(start), int(stop)) for start, stop in changes.reshape(-1, 2)]

    def span(self, text: int, characters: int) -> tuple[int, int]:
        """Start and stop of the longest copied span within the characters of a text; (0, 0) for none."""
        start, size = (int(value) for value in self.longest[text])
        stop = min(start + size - self.whole, characters)
        return (max(0, start - self.whole), stop) if size else (0, 0)


def find_copies(texts: Sequence[str], training: Iterable[Sequence[str]], n: int, whole: bool) -> Copies:
    """The n-grams (of `n` characters) and the longest spans of `texts` that occur in the training split.

    `training` yields it in batches of texts; nothing is looked for across two of them. Where texts are `whole` records,
    where they begin and end counts as a character.
    """
    queries = [codes_of(text, whole) for text in texts]
    index = _Index(queries, n)
    automaton: SuffixAutomaton | None = None
    seen: set[bytes] = set()
    for batch in training:
        for codes in _joined(batch, whole):
            for run in index.find(codes):
                if automaton is None:
                    automaton = SuffixAutomaton([query.tolist() for query in queries])
                if (key := run.tobytes()) not in seen:
                    if len(seen) == RUNS_REMEMBERED:
                        seen.clear()
                    seen.add(key)
                    automaton.read(run.tolist())
    longest = np.zeros((len(texts), 2), np.int64)
    if automaton is not None:
        found = np.array(automaton.longest(), np.int64).reshape(-1, 2)
        longest = np.where(found[:, 1:] >= n, found, 0)
    return Copies(n, whole, index.copied(), longest)


def _joined(texts: Sequence[str], whole: bool) -> Iterator[np.ndarray]:
    """The codes of texts, short ones together, parted by what no text that is asked about has in it."""
    separator = np.full(1, EDGE + 1, np.uint32)
    waiting: list[np.ndarray] = []
    size = 0
    for text in texts:
        codes = codes_of(text, whole)
        waiting += [codes, separator]
        size += len(codes) + 1
        if size >= CHARACTERS_AT_ONCE:
            yield np.concatenate(waiting)
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


class _Index:
    """The different n-grams of some texts, and which of them were found."""

    def __init__(self, queries: Sequence[np.ndarray], n: int) -> None:
        self.n = n
        self.sizes = [max(0, len(query) - n + 1) for query in queries]
        flat = np.concatenate([np.zeros(0, np.uint32), *queries])
        starts = np.cumsum([0, *(len(query) for query in queries)])[:-1]
        places = np.concatenate(
            [np.zeros(0, np.int64), *(first + np.arange(size) for first, size in zip(starts, self.sizes, strict=True))]
        )
        self.windows = np.lib.stride_tricks.sliding_window_view(flat, n) if len(flat) >= n else flat.reshape(-1, 1)
        base = 0x9E3779B97F4A7C15
        while True:
            hashes = window_hashes(flat, n, base)[places]
            self.hashes, first_of, self.gram = np.unique(hashes, return_index=True, return_inverse=True)
            self.example = places[first_of]
            if self._one_gram_a_hash(places):
                break
            base += 2  # two n-grams with one hash: take another
        self.base = base
        self.table = np.zeros(2**TABLE_BITS, bool)
        self.table[self.hashes >> np.uint64(64 - TABLE_BITS)] = True
        self.found = np.zeros(len(self.hashes), bool)

    def _one_gram_a_hash(self, places: np.ndarray) -> bool:
        return all(
            bool((self.windows[places[part]] == self.windows[self.example[self.gram[part]]]).all())
            for part in _parts(len(places))
        )

    def find(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Mark the n-grams that are in `codes`; the stretches of it whose n-grams all are."""
        if not len(self.hashes) or len(codes) < self.n:
            return
        hashes = window_hashes(codes, self.n, self.base)
        places = np.flatnonzero(self.table[hashes >> np.uint64(64 - TABLE_BITS)])
        gram = np.minimum(np.searchsorted(self.hashes, hashes[places]), len(self.hashes) - 1)
        same = self.hashes[gram] == hashes[places]
        places, gram = places[same], gram[same]
        windows = np.lib.stride_tricks.sliding_window_view(codes, self.n)
        equal = np.zeros(len(places), bool)
        for part in _parts(len(places)):
            equal[part] = (windows[places[part]] == self.windows[self.example[gram[part]]]).all(1)
        places, gram = places[equal], gram[equal]
        self.found[gram] = True
        for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            if len(run):
                yield codes[run[0] : run[-1] + self.n]

    def copied(self) -> list[np.ndarray]:
        """Of each text, which of its n-grams were found: masks bool `[n-grams]`."""
        return np.split(self.found[self.gram], np.cumsum(self.sizes)[:-1]) if self.sizes else []


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + COMPARED_AT_ONCE) for start in range(0, count, COMPARED_AT_ONCE))


def shared_windows(texts: Sequence[str], n: int, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Every n-gram (of `n` characters) of several texts: which text it is of, and its 64-bit hash; `[n-grams]` each."""
    hashes = [window_hashes(codes_of(text, whole), n) for text in texts]
    sizes = [len(found) for found in hashes]
    return np.repeat(np.arange(len(texts)), sizes), np.concatenate([np.zeros(0, np.uint64), *hashes])


def shared_share(text: np.ndarray, hashes: np.ndarray) -> float:
    """The share of n-grams that occur in another text of the same set, of what `shared_windows` gave."""
    if not len(hashes):
        return 0.0
    _, gram = np.unique(hashes, return_inverse=True)
    pairs = np.unique(gram * (int(text.max()) + 1) + text) // (int(text.max()) + 1)
    return float((np.bincount(pairs)[gram] > 1).mean())


@dataclass(frozen=True)
class Source:
    """A text beside the training text that it shares its longest span with: `span` and `source_span` are start and
    stop in each, `marks` all spans of the text that are covered by copied n-grams."""

    text: str
    source: str
    span: tuple[int, int]
    source_span: tuple[int, int]
    marks: tuple[tuple[int, int], ...]
    copied_share: float

    def as_dict(self) -> dict[str, Any]:
        """Of JSON types."""
        return {
            **vars(self),
            "span": list(self.span),
            "source_span": list(self.source_span),
            "marks": [list(mark) for mark in self.marks],
        }


CONTEXT = 80
"""Characters that are shown on either side of a span in a long training text."""


def show_copies(
    texts: Sequence[str], copies: Copies, training: Iterable[Sequence[str]], count: int = 8
) -> list[Source]:
    """The `count` texts with the longest copied spans, each different one once, beside where the span first stands."""
    order = np.argsort(-copies.longest[:, 1], kind="stable")
    wanted: dict[str, int] = {}
    for place in order:
        start, stop = copies.span(int(place), len(texts[place]))
        if stop > start and len(wanted) < count:
            wanted.setdefault(texts[place][start:stop], int(place))
    found: dict[str, tuple[str, int]] = {}
    for batch in training:
        for text in batch:
            for span in wanted.keys() - found.keys():
                if (at := text.find(span)) >= 0:
                    found[span] = _around(text, at, len(span))
        if len(found) == len(wanted):
            break
    shown: list[Source] = []
    for span, place in wanted.items():
        if span not in found:
            continue
        source, at = found[span]
        shown.append(
            Source(
                texts[place],
                source,
                copies.span(place, len(texts[place])),
                (at, at + len(span)),
                tuple(copies.marks(place, len(texts[place]))),
                float(copies.copied[place].mean()),
            )
        )
    return shown


def _around(text: str, at: int, size: int) -> tuple[str, int]:
    """A text that is not much longer than the span at `at`, or the surroundings of the span; and where it is there."""
    if len(text) <= size + 4 * CONTEXT:
        return text, at
    first = max(0, at - CONTEXT)
    return text[first : at + size + CONTEXT], at - first
