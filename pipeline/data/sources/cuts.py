"""Cuts: where a big file of lines or paragraphs parts into ranges of bytes, found while it passes by in pieces."""

from __future__ import annotations

import re
from typing import Literal

Ends = Literal["newline", "line", "paragraph"]

_EMPTY_LINE = re.compile(rb"\n[ \t]*\r?\n")
_TAIL_BYTES = 256
"""How much of a piece is looked at again with the next one. An empty line with more spaces than this that lies on both
is overlooked, and the cut falls on a later one."""


class CutFinder:
    """Finds places at least `range_bytes` apart at which a record ends, and the number of the line that follows.

    `newline`: after any `\\n`, which alone parts lines (JSON lines). `line`: the same, but `\\r` alone parts lines too,
    as in Python's text files. `paragraph`: after an empty line. The encoding must keep ASCII (`keeps_ascii`).
    """

    def __init__(self, range_bytes: int, ends: Ends) -> None:
        self.range_bytes, self.ends = range_bytes, ends
        self.marks: list[tuple[int, int]] = [(0, 1)]
        self._size = 0
        self._lines = 0
        self._tail = b""

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the file."""
        tail, counted = self._tail, 0
        while True:
            earliest = self.marks[-1][0] + self.range_bytes
            if self._size + len(piece) < earliest:
                break
            cut = self._next_end(tail, piece, max(counted, earliest - self._size - 1))
            if cut is None:
                break
            self._count(piece[counted:cut])
            self.marks.append((self._size + cut, self._lines + 1))
            counted = cut
        self._count(piece[counted:])
        self._size += len(piece)

    def finish(self) -> tuple[tuple[int, int], ...]:
        """(byte, line number) from the beginning of the file, (0, 1), to its end; a range lies between two of them."""
        if self._size == self.marks[-1][0]:
            return tuple(self.marks)
        ended = self._tail.endswith((b"\n",) if self.ends == "newline" else (b"\n", b"\r"))
        return (*self.marks, (self._size, self._lines + (1 if ended else 2)))

    def _next_end(self, tail: bytes, piece: bytes, start: int) -> int | None:
        """The first place after `start` in the piece, from which on another record may begin."""
        if self.ends != "paragraph":
            found = piece.find(b"\n", start)
            return found + 1 if found >= 0 else None
        before = len(tail)
        looked_at = tail + piece
        # An empty line that ends after `start` may begin long before it.
        for match in _EMPTY_LINE.finditer(looked_at, max(0, before + start - _TAIL_BYTES)):
            if match.end() - before > start:
                return match.end() - before
        return None

    def _count(self, part: bytes) -> None:
        if not part:
            return
        self._lines += part.count(b"\n")
        if self.ends != "newline" and (b"\r" in part or self._tail.endswith(b"\r")):
            self._lines += part.count(b"\r") - part.count(b"\r\n")
            # One that lies on both sides was counted as two.
            self._lines -= self._tail.endswith(b"\r") and part.startswith(b"\n")
        self._tail = (self._tail + part)[-_TAIL_BYTES:] if len(part) < _TAIL_BYTES else part[-_TAIL_BYTES:]
