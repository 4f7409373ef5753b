"""What corpora at a path share: which files they have, what tells that one was changed, and reading just those.

The driver lists and digests the files, many at a time; workers open a unit's files as the fingerprint saw them.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, ClassVar, Protocol, cast

import pyarrow as pa

from pipeline.data.layout import Modality
from pipeline.data.records import Corpus, Known, SourceFile, Unit, changed, wrong_modality
from pipeline.data.sources.location import FileState, Location
from pipeline.errors import CorpusError

CUT_SHORT = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What the standard library raises on a compressed file that is damaged or cut short."""

UNREADABLE = "unreadable"
"""The digest of a file that the fingerprint could not read."""

PIECE_BYTES = 8 * 2**20
FILES_PER_UNIT = 2000
BYTES_PER_UNIT = 32 * 2**20
SCANNERS = 4
REMOTE_SCANNERS = 16
FILES_PER_SCAN = 256

OPENERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((".gz", ".tgz"), gzip.open),
    **dict.fromkeys((".xz", ".txz"), lzma.open),
    **dict.fromkeys((".bz2", ".tbz2"), bz2.open),
}


class Watcher(Protocol):
    """Looks at a file's bytes while they are hashed."""

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the file."""


class PathCorpus(Corpus):
    """A corpus at a path or URI: one file, or a folder of files with one of `suffixes`."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[Modality, ...]] = ()
    unit_bytes: int = BYTES_PER_UNIT

    def __init__(self, source: Any, modality: Modality) -> None:
        super().__init__(source, modality)
        self.location = Location(source.path)
        self._names: list[str] | None = None
        if self.modalities and modality not in self.modalities:
            wrong_modality(f"data.source.kind {source.kind!r} holds {' or '.join(self.modalities)}", modality)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_names": None}

    def names(self) -> list[str]:
        """Files of the corpus, sorted; listed once."""
        if self._names is None:
            self._names = self._list_names()
        return self._names

    def _list_names(self) -> list[str]:
        names = self.location.names()
        if self.location.is_file:
            return names
        names = [name for name in names if name.lower().endswith(self.suffixes)]
        if not names:
            raise CorpusError(f"{self.location.shown}: no file in this folder ends with {', '.join(self.suffixes)}")
        return names

    # --- the fingerprint ---------------------------------------------------------------------------------------

    def _scan(self) -> list[SourceFile]:
        names = self.names()
        if not self.location.is_local:
            with ThreadPoolExecutor(REMOTE_SCANNERS) as pool:
                return list(pool.map(self._scan_remote, names))
        chunks = [names[start : start + FILES_PER_SCAN] for start in range(0, len(names), FILES_PER_SCAN)]
        with ThreadPoolExecutor(SCANNERS) as pool:
            return [file for files in pool.map(self._scan_chunk, chunks) for file in files]

    def _scan_chunk(self, names: list[str]) -> list[SourceFile]:
        return [self._scan_local(name) for name in names]

    def _scan_local(self, name: str) -> SourceFile:
        """Read a file once: its digest, and whatever else this kind of corpus wants to know of it."""
        digest = hashlib.sha256()
        try:
            with open(self.location.path_of(name), "rb", buffering=0) as file:
                before = os.fstat(file.fileno())
                watchers = self._watchers(name, before.st_size)
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
                    for watcher in watchers:
                        watcher.feed(piece)
                after = os.fstat(file.fileno())
        except OSError as error:
            return self._unreadable(name, error)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise changed(self.location.shown_path(name))
        encoding, marks = self._seen(name, watchers) if watchers else (None, ())
        return SourceFile(name, after.st_size, digest.hexdigest(), encoding, marks, after.st_mtime_ns)

    def _scan_remote(self, name: str) -> SourceFile:
        try:
            state = self.location.listed_state(name)
            digest = self.location.remote_digest(name, state, self._asks_tags())
        except (OSError, pa.ArrowException) as error:
            return self._unreadable(name, error)
        return SourceFile(name, state.size, digest, modified_ns=state.modified_ns)

    def _watchers(self, name: str, size: int) -> tuple[Watcher, ...]:
        """Who else looks at a local file while it is hashed."""
        return ()

    def _seen(self, name: str, watchers: tuple[Watcher, ...]) -> tuple[str | None, tuple[tuple[int, int], ...]]:
        """The encoding and the marks that the watchers of a file found."""
        raise NotImplementedError

    def _asks_tags(self) -> bool:
        """Whether one more request a file is worth its ETag: not where there may be a hundred thousand files."""
        return True

    def _unreadable(self, name: str, error: Exception) -> SourceFile:
        raise CorpusError(f"{self.location.shown_path(name)}: cannot be read: {error}") from None

    # --- units -------------------------------------------------------------------------------------------------

    def whole_units(self, files: Iterable[SourceFile], known: Known) -> Iterator[Unit]:
        """Units of whole files in order, each of some that are not `known`; they say so (`whole_files`)."""
        group: list[SourceFile] = []
        size = 0
        for file in files:
            if (file.name, file.digest) in known:
                continue
            if group and (len(group) == FILES_PER_UNIT or size + file.size > self.unit_bytes):
                yield self.unit_of(group, whole_files=True)
                group, size = [], 0
            group.append(file)
            size += file.size
        if group:
            yield self.unit_of(group, whole_files=True)

    def unit_of(self, files: list[SourceFile], **keys: Any) -> Unit:
        return {
            "kind": self.source.kind,
            "files": [[file.name, file.digest] for file in files],
            "guard": [[file.size, file.modified_ns] for file in files],
            "bytes": sum(file.size for file in files),
            **keys,
        }

    # --- reading -----------------------------------------------------------------------------------------------

    @contextmanager
    def opened(self, unit: Unit, number: int = 0) -> Iterator[BinaryIO]:
        """File `number` of a unit, that can be sought in, with the content that the fingerprint saw.

        Raises: CorpusError when it has another by now, or gets another while it is read.
        """
        name, _ = unit["files"][number]
        if self.location.is_local and unit["guard"][number][0] <= BYTES_PER_UNIT:
            try:
                data = self.read_whole(unit, number)
            except OSError as error:
                raise CorpusError(f"{self.location.shown_path(name)}: cannot be read: {error}") from None
            yield io.BytesIO(data)
            return
        self.check_unchanged(unit, number)
        try:
            file = self.location.open(name)
        except (OSError, pa.ArrowException) as error:
            raise CorpusError(f"{self.location.shown_path(name)}: cannot be read: {error}") from None
        with file:
            try:
                yield file
            except Exception:
                self.check_unchanged(unit, number)  # which says more than what the reader fell over
                raise
        self.check_unchanged(unit, number)

    def read_whole(self, unit: Unit, number: int) -> bytes:
        """All of a file. Raises: CorpusError when it was changed, OSError when it cannot be read."""
        (name, digest), (size, _) = unit["files"][number], unit["guard"][number]
        try:
            data = self.location.read(name)
        except FileNotFoundError:
            if digest == UNREADABLE:
                raise
            raise changed(self.location.shown_path(name)) from None
        if self.location.is_local:
            same = hashlib.sha256(data).hexdigest() == digest
        else:
            same = len(data) == size and self._remote_is(name, digest)
        if not same:
            raise changed(self.location.shown_path(name))
        return data

    def check_unchanged(self, unit: Unit, number: int) -> None:
        """Raises: CorpusError when a file of the unit is not of the size and time that the fingerprint saw."""
        (name, digest), guard = unit["files"][number], FileState(*unit["guard"][number])
        try:
            same = self.location.state(name) == guard if self.location.is_local else self._remote_is(name, digest)
        except OSError:
            same = False
        if not same:
            raise changed(self.location.shown_path(name))

    def _remote_is(self, name: str, digest: str) -> bool:
        return self.location.remote_digest(name, self.location.state(name), self._asks_tags()) == digest


class WholeFilesCorpus(PathCorpus):
    """A corpus in which a file is a record; one that cannot be read is a record with an error."""

    @property
    def files_are_records(self) -> bool:
        return True

    @property
    def single_document(self) -> bool:  # type: ignore[override]
        return self.files_are_records and len(self.names()) == 1

    def units(self, limit: int | None = None, known: Known = frozenset()) -> list[Unit]:
        """As for any corpus; `limit` takes files, evenly spaced, and of those what is not `known` is read."""
        if not self.files_are_records:
            return super().units(limit, known)
        files = self.files()
        if limit is not None and limit < len(files):
            files = [files[i * len(files) // limit] for i in range(limit)]
        return [{**unit, "count": len(unit["files"])} for unit in self.whole_units(files, known)]

    def _units(self, known: Known) -> Iterable[Unit]:
        return self.whole_units(self.files(), known)

    def _asks_tags(self) -> bool:
        return not self.files_are_records

    def _unreadable(self, name: str, error: Exception) -> SourceFile:
        if not self.files_are_records:
            super()._unreadable(name, error)
        return SourceFile(name, 0, UNREADABLE)

    def fetch_all(self, unit: Unit) -> Iterator[tuple[str, bytes, str | None]]:
        """(name, content, why there is none) of each file of a unit; those behind a URI several at a time."""
        numbers = range(len(unit["files"]))
        if self.location.is_local:
            yield from (self._fetch(unit, number) for number in numbers)
            return
        with ThreadPoolExecutor(REMOTE_SCANNERS) as pool:
            yield from pool.map(lambda number: self._fetch(unit, number), numbers)

    def _fetch(self, unit: Unit, number: int) -> tuple[str, bytes, str | None]:
        name = unit["files"][number][0]
        try:
            return name, self.read_whole(unit, number), None
        except (OSError, pa.ArrowException) as error:
            return name, b"", f"cannot be read: {getattr(error, 'strerror', None) or error}"


@contextmanager
def unpacked(file: BinaryIO, name: str, shown: str) -> Iterator[BinaryIO]:
    """`file` unpacked as its name's suffix says; damage becomes a CorpusError, also while reading."""
    opener = OPENERS.get(PurePosixPath(name).suffix.lower())
    try:
        yield cast(BinaryIO, opener(file, "rb")) if opener else file
    except CUT_SHORT as error:
        raise CorpusError(f"{shown}: damaged or cut short ({error}); fetch it again") from None


def is_packed(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in OPENERS
