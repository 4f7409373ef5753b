"""Storage: a local folder or a URI (`s3://bucket/prefix`, `gs://…`) behind one small face over pyarrow's filesystems.

Used by the driver and by every worker. Writes are atomic where the filesystem can rename; on an object store
an object appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.errors import StorageError

CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Store:
    """A folder of some filesystem; `uri` is what a person wrote (absolute when local), `root` the path in it."""

    filesystem: pafs.FileSystem
    root: str
    uri: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def local_path(self, *parts: str) -> Path:
        """The path on this machine. Raises: StorageError when the storage is remote."""
        if not self.is_local:
            raise StorageError(f"{self.uri} is not a local folder")
        return Path(self.root, *parts)

    def path(self, *parts: str) -> str:
        return "/".join([self.root.rstrip("/"), *parts])

    def child(self, *parts: str) -> Store:
        address, mark, options = self.uri.partition("?")
        return Store(self.filesystem, self.path(*parts), "/".join([address.rstrip("/"), *parts]) + mark + options)

    def exists(self, *parts: str) -> bool:
        with self._explained("look for", *parts):
            return bool(self.filesystem.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound)

    def read_bytes(self, *parts: str) -> bytes:
        with self._explained("read", *parts), self.filesystem.open_input_file(self.path(*parts)) as stream:
            return bytes(stream.read())

    def open_input(self, *parts: str) -> pa.NativeFile:
        """A file opened for reading anywhere in it."""
        with self._explained("read", *parts):
            return self.filesystem.open_input_file(self.path(*parts))

    def download(self, target: Path, *parts: str) -> None:
        """Copy a file to this machine, piece by piece."""
        with (
            self._explained("read", *parts),
            self.filesystem.open_input_file(self.path(*parts)) as stream,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(stream, file, CHUNK_BYTES)

    @contextmanager
    def open_output(self, *parts: str) -> Iterator[pa.NativeFile]:
        """A file written piece by piece, which on a filesystem that renames has its name only when it is whole; on an
        object store one that was broken off may be there, cut short."""
        target = self.path(*parts)
        written = _temporary(target) if self.is_local else target
        with self._explained("write", *parts):
            if self.is_local:
                self.filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
            try:
                with self.filesystem.open_output_stream(written) as stream:
                    yield stream
                if self.is_local:
                    os.replace(written, target)
            finally:
                if self.is_local:
                    Path(written).unlink(missing_ok=True)

    def delete_file(self, *parts: str) -> None:
        """Delete a file, if it is there."""
        with self._explained("delete", *parts):
            if self.exists(*parts):
                self.filesystem.delete_file(self.path(*parts))

    def read_json(self, *parts: str) -> Any:
        try:
            return json.loads(self.read_bytes(*parts))
        except ValueError as error:
            raise StorageError(f"{self.path(*parts)}: not valid JSON ({error}); it was changed or cut short") from None

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a file whole: under a temporary name first, then renamed, on filesystems that rename."""
        target = self.path(*parts)
        with self._explained("write", *parts):
            if not self.is_local:
                with self.filesystem.open_output_stream(target, compression=None) as stream:  # not by the name
                    stream.write(data)
                return
            self.filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
            temporary = _temporary(target)
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            finally:
                Path(temporary).unlink(missing_ok=True)

    def write_json(self, value: Any, *parts: str) -> None:
        self.write_bytes(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True).encode(), *parts)

    def sweep(self, *parts: str) -> None:
        """Remove from a local folder what processes of this machine were writing when they were killed."""
        if not self.is_local:
            return
        ours = re.compile(rf"\.{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]{{8}}\.tmp$")
        for name in self.list_names(*parts):
            found = ours.search(name)
            if found and not psutil.pid_exists(int(found[1])):
                self.delete_file(*parts, name)

    def make_dir(self, *parts: str) -> None:
        with self._explained("make", *parts):
            self.filesystem.create_dir(self.path(*parts), recursive=True)

    def list_names(self, *parts: str) -> list[str]:
        """Names directly in a folder, sorted; empty when there is no such folder."""
        with self._explained("list", *parts):
            selector = pafs.FileSelector(self.path(*parts), allow_not_found=True)
            return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def delete_dir(self, *parts: str) -> None:
        with self._explained("delete", *parts):
            if self.exists(*parts):
                self.filesystem.delete_dir(self.path(*parts))

    def check_writable(self) -> None:
        """Write and remove a small file. Raises: StorageError that says what the filesystem said."""
        name = f".writable-{uuid.uuid4().hex[:8]}"
        self.write_bytes(b"atelier", name)
        with self._explained("delete in"):
            self.filesystem.delete_file(self.path(name))

    def _explained(self, verb: str, *parts: str) -> _Explained:
        return _Explained(f"{self.path(*parts)}: cannot {verb} it")


def _temporary(target: str) -> str:
    """A name beside `target` that says who is writing, so that others know what was left behind."""
    return f"{target}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"


class _Explained:
    """Turns what a filesystem raises into a StorageError that names the path."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError | pa.ArrowException):
            raise StorageError(f"{self.what}: {error}; check the path, the space left and the permissions") from error


def open_store(uri: str) -> Store:
    """The storage at a local path (made absolute) or a URI. Raises: StorageError on an unknown scheme."""
    if "://" not in uri:
        path = str(Path(uri).expanduser().resolve())
        return Store(pafs.LocalFileSystem(), path, path)
    try:
        filesystem, root = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise StorageError(f"storage {uri!r}: {error}; write a path or a URI such as s3://bucket/prefix") from None
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Store(filesystem, root, root)
    return Store(filesystem, root, uri)
