"""Files that part at the ends of lines: how they become units, and the bytes of a unit."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, BinaryIO, cast

from pipeline.data.encodings import AUTO, UTF8, EncodingFinder
from pipeline.data.records import Known, SourceFile, Unit
from pipeline.data.sources.paths import BYTES_PER_UNIT, PIECE_BYTES, PathCorpus, is_packed, unpacked
from pipeline.errors import CorpusError

SPOOLED_BYTES = 64 * 2**20


class RangesCorpus(PathCorpus):
    """Files that part at the ends of lines: small ones whole, several a unit; big local ones in ranges of bytes.

    A packed file, one behind a URI (which would have to be read to be cut) or in an encoding that does not keep ASCII
    is a unit of its own.
    """

    range_bytes: int = BYTES_PER_UNIT

    def range_units(self, known: Known, count_lines: bool = False) -> Iterator[Unit]:
        """Units in the files' order; a range has its `start` and `stop` in bytes and the number of its first `line`."""
        small: list[SourceFile] = []
        for file in self.files():
            if not file.marks:
                small.append(file)
                continue
            yield from self.whole_units(small, known)
            small = []
            for (start, line), (stop, after) in pairwise(file.marks):
                keys: dict[str, Any] = {"start": start, "stop": stop, "line": line, "encoding": file.encoding}
                if count_lines:
                    keys["count"] = after - line
                yield {**self.unit_of([file], **keys), "bytes": stop - start}
        yield from self.whole_units(small, known)

    def is_cut(self, name: str, size: int) -> bool:
        """Whether a local file is to be read in ranges."""
        return size > self.range_bytes and not is_packed(name)

    @contextlib.contextmanager
    def part(self, unit: Unit, number: int, twice: bool = False) -> Iterator[tuple[BinaryIO, int]]:
        """The unpacked bytes of file `number` of a unit, or of its range of one, and the number of their first line.

        Where they are to be read `twice`, those behind a URI are put into a temporary file, not fetched twice.
        """
        name = unit["files"][number][0]
        with self.opened(unit, number) as file, contextlib.ExitStack() as stack:
            if "start" in unit:
                file.seek(unit["start"])
                yield io.BytesIO(file.read(unit["stop"] - unit["start"])), unit["line"]
                return
            if twice and not self.location.is_local:
                spooled = stack.enter_context(tempfile.SpooledTemporaryFile(SPOOLED_BYTES))
                shutil.copyfileobj(file, spooled, PIECE_BYTES)
                spooled.seek(0)
                file = cast(BinaryIO, spooled)
            yield stack.enter_context(unpacked(file, name, self.location.shown_path(name))), 1

    def encoding_of(self, file: BinaryIO) -> str:
        """The encoding of a file that was not looked at before; it is read once for it."""
        if self.source.encoding != AUTO:
            return str(self.source.encoding)
        finder = EncodingFinder()
        for piece in _pieces(file):
            finder.feed(piece)
        encoding = found_encoding(finder, file)
        file.seek(0)
        return encoding


def found_encoding(finder: EncodingFinder, file: BinaryIO) -> str:
    """The encoding; where none fits, UTF-8, so that only the lines that are not become errors."""
    try:
        return finder.find(lambda: _pieces(file))
    except CorpusError:
        return UTF8


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(PIECE_BYTES):
        yield piece
