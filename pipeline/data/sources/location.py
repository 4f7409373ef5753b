"""Where a corpus lies: a file or a folder, on this machine or behind a URI, and how its files are listed and opened."""

from __future__ import annotations

import difflib
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.errors import CorpusError, StorageError
from pipeline.storage import Store, open_store

REMOTE_BUFFER_BYTES = 4 * 2**20


@dataclass(frozen=True)
class FileState:
    """What tells that a file is still the same without reading it."""

    size: int
    modified_ns: int


class Location:
    """The file or folder at `path`, of the local filesystem or one that pyarrow knows (`s3://`, `gs://`, `hdfs://`).

    Names are relative to the folder, with forward slashes; a single file goes under its own name.
    """

    def __init__(self, path: str) -> None:
        """Raises: CorpusError when there is nothing at `path`, or its filesystem does not answer."""
        self.store = _open(path)
        self.root = self.store.root.rstrip("/") or "/"
        self.shown = _without_options(path) if not self.is_local else self.root
        kind = self._info(self.root).type
        if kind == pafs.FileType.NotFound:
            nearby = _nearby(Path(self.root)) if self.is_local else ""
            raise CorpusError(f"data.source.path {self.shown!r}: there is no such file or folder{nearby}")
        self.is_file = kind == pafs.FileType.File
        self._listed: dict[str, FileState] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_listed": {}}

    @property
    def is_local(self) -> bool:
        return self.store.is_local

    def names(self) -> list[str]:
        """All files, sorted, but hidden ones. Raises: CorpusError when a folder cannot be listed."""
        try:
            names = [Path(self.root).name] if self.is_file else self._list()
        except (OSError, pa.ArrowException) as error:
            raise CorpusError(f"{self.shown}: cannot be listed: {error}") from None
        for name in names:
            if not _is_unicode(name):
                raise CorpusError(f"{self.shown}: the file name {name!r} is not UTF-8; rename it, or set a glob")
        return sorted(names)

    def path_of(self, name: str) -> str:
        return self.root if self.is_file else f"{self.root.rstrip('/')}/{name}"

    def shown_path(self, name: str) -> str:
        return self.shown if self.is_file else f"{self.shown.rstrip('/')}/{name}"

    def open(self, name: str) -> BinaryIO:
        """A file for reading bytes from any place in it. Raises: OSError."""
        if self.is_local:
            return open(self.path_of(name), "rb")
        stream = self.store.filesystem.open_input_file(self.path_of(name))
        return cast(BinaryIO, io.BufferedReader(stream, REMOTE_BUFFER_BYTES))

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises: OSError."""
        if self.is_local:
            with open(self.path_of(name), "rb", buffering=0) as file:  # a buffer is a third of a small file's time
                return file.read()
        with self.open(name) as stream:
            return stream.read()

    def state(self, name: str) -> FileState:
        """A file's size and time as they are now. Raises: OSError when it is not there."""
        if self.is_local:
            status = os.stat(self.path_of(name))
            return FileState(status.st_size, status.st_mtime_ns)
        info = self.store.filesystem.get_file_info(self.path_of(name))
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(f"{self.shown_path(name)}: there is no such file")
        return FileState(info.size, info.mtime_ns or 0)

    def listed_state(self, name: str) -> FileState:
        """The state that the listing gave for nothing, where it did."""
        return self._listed.get(name) or self.state(name)

    def remote_digest(self, name: str, state: FileState, with_tag: bool) -> str:
        """The digest of a file behind a URI: of its size, its time and, for one more request, its ETag."""
        tag = b""
        if with_tag:
            with self.store.filesystem.open_input_file(self.path_of(name)) as stream:
                tag = dict(stream.metadata() or {}).get("ETag", b"")
        return hashlib.sha256(f"{state.size} {state.modified_ns} {tag!r}".encode()).hexdigest()

    def _info(self, path: str) -> pafs.FileInfo:
        try:
            return self.store.filesystem.get_file_info(path)
        except (OSError, pa.ArrowException) as error:
            raise CorpusError(f"data.source.path {self.shown!r}: cannot be looked at: {error}") from None

    def _list(self) -> list[str]:
        if self.is_local:
            return _walk(self.root)
        found = self.store.filesystem.get_file_info(pafs.FileSelector(self.root, recursive=True))
        for info in found:
            name = info.path.removeprefix(self.root.rstrip("/") + "/")
            if info.type == pafs.FileType.File and not is_hidden(name):
                self._listed[name] = FileState(info.size, info.mtime_ns or 0)
        return list(self._listed)


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _open(path: str) -> Store:
    if "://" not in path:
        # Not resolved: a file goes under the name that it was given, also when that is a link.
        absolute = str(Path(path).expanduser().absolute())
        return Store(pafs.LocalFileSystem(), absolute, absolute)
    try:
        return open_store(path)
    except StorageError as error:
        raise CorpusError(f"data.source.path: {error}") from None


def _walk(root: str) -> list[str]:
    """Files below `root`, relative; no file is asked for more than the folder itself tells."""
    names: list[str] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                name = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                elif entry.is_file(follow_symlinks=False) or (entry.is_symlink() and not entry.is_dir()):
                    names.append(name)
    return names


def _is_unicode(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _without_options(uri: str) -> str:
    """A URI as it may be shown: without what may hold a password or a key."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _nearby(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
