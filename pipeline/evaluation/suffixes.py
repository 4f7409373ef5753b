"""A suffix automaton: where a long text, read once from left to right, repeats parts of a few short ones.

Plain Python, on the driver. Built from the short texts, about 300 bytes of memory a character; what is read through it
is not kept, however long it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class SuffixAutomaton:
    """The smallest automaton that knows every substring of `texts`, and the longest of each that `read` has met.

    Source: Blumer et al. (1985); matching statistics as in Chang and Lawler (1994), section 3. Characters are any
    hashable values; no substring that goes over the end of a text is known.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.texts = texts
        self._next: list[dict[int, int]] = [{}]
        self._link: list[int] = [-1]
        self._length: list[int] = [0]
        for text in texts:
            last = 0
            for symbol in text:
                last = self._extend(last, symbol)
        self._met = [0] * len(self._length)

    def _extend(self, last: int, symbol: int) -> int:
        """Add `symbol` after the state `last`; the state of the text so far."""
        following, link, length = self._next, self._link, self._length
        known = following[last].get(symbol)
        if known is not None:
            return known if length[known] == length[last] + 1 else self._split(last, symbol, known)
        new = self._new_state(length[last] + 1, {})
        state = last
        while state >= 0 and symbol not in following[state]:
            following[state][symbol] = new
            state = link[state]
        if state < 0:
            link[new] = 0
            return new
        target = following[state][symbol]
        link[new] = target if length[target] == length[state] + 1 else self._split(state, symbol, target)
        return new

    def _split(self, state: int, symbol: int, target: int) -> int:
        """Part the substrings of `target` that end a shorter one from the rest; their state."""
        clone = self._new_state(self._length[state] + 1, dict(self._next[target]))
        self._link[clone] = self._link[target]
        self._link[target] = clone
        while state >= 0 and self._next[state].get(symbol) == target:
            self._next[state][symbol] = clone
            state = self._link[state]
        return clone

    def _new_state(self, length: int, following: dict[int, int]) -> int:
        self._next.append(following)
        self._link.append(0)
        self._length.append(length)
        return len(self._length) - 1

    def read(self, symbols: Iterable[int]) -> None:
        """Note, at each place of `symbols`, the longest known substring that ends there."""
        following, link, length, met = self._next, self._link, self._length, self._met
        state = matched = 0
        for symbol in symbols:
            while state and symbol not in following[state]:
                state = link[state]
                matched = length[state]
            if symbol in following[state]:
                state = following[state][symbol]
                matched += 1
                if matched > met[state]:
                    met[state] = matched

    def longest(self) -> list[tuple[int, int]]:
        """Of each text the first place and the length of its longest substring that `read` has met; (0, 0) for none."""
        met, link = list(self._met), self._link
        by_length = sorted(range(1, len(met)), key=self._length.__getitem__)
        # What is met of the longest substring of a state is met of its suffixes, and of those of a state above it.
        for state in reversed(by_length):
            if met[state] and link[state] > 0:
                met[link[state]] = self._length[link[state]]
        for state in by_length:
            if not met[state]:
                met[state] = met[link[state]]
        return [self._longest_of(text, met) for text in self.texts]

    def _longest_of(self, text: Sequence[int], met: list[int]) -> tuple[int, int]:
        best = start = state = 0
        for place, symbol in enumerate(text):
            state = self._next[state][symbol]
            if met[state] > best:
                best, start = met[state], place + 1 - met[state]
        return start, best
