"""The shelf of a run: its checkpoints in the storage, each of them there whole or not at all.

Rank 0 puts checkpoints there, verifies them before any is trusted and clears away what killed writers left; every rank
reads. On a local filesystem a checkpoint is written under a temporary name and renamed. An object store renames
nothing: there a mark says that a checkpoint is unfinished until its last file, `state.json`, has arrived. Ray Train
knows of none of them: it would count a checkpoint only when its controller has asked for it, writes its own list in
place, so that a kill may leave half of it, and refuses to start when one on the list is gone.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.errors import CheckpointError, StorageError
from pipeline.spec import TrainingSpec
from pipeline.storage import CHUNK_BYTES, Store
from pipeline.training.checkpoint import STATE, verify

NAME = re.compile(r"step-(\d+)")
UNFINISHED = "unfinished"
"""The mark of a checkpoint on an object store that is being written."""
TEMPORARY = re.compile(r"\.step-.*\.tmp")
PAUSES_SECONDS = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Between the tries of what an object store did not do: it may not answer for a minute."""
Value = TypeVar("Value")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The step whose checkpoint a run goes on from (None where it begins), and why newer ones were refused."""

    step: int | None = None
    refused: tuple[str, ...] = ()


class Shelf:
    """The checkpoints of the run whose folder `store` is, of which the last `keep` are kept.

    A checkpoint that was refused counts for nothing, and is deleted when the next one has been put there.
    """

    def __init__(self, store: Store, keep: int) -> None:
        self.store, self.keep = store, keep
        self.refused: set[int] = set()
        self._fetched: tuple[int, tempfile.TemporaryDirectory[str]] | None = None

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, or what looks like one, oldest first."""
        return sorted(int(found[1]) for name in self.store.list_names() if (found := NAME.fullmatch(name)))

    def put(self, step: int, write: Callable[[Path], None]) -> None:
        """Put the checkpoint of `step` there, which `write` writes into the folder that it is given, and delete those
        that are no longer kept. Raises: StorageError; there is then no more and no less than before."""
        if self.store.is_local:
            self._put_renamed(step, write)
        else:
            self._put_uploaded(step, write)
        self.refused.discard(step)
        before = [number for number in self._insist(self.steps) if number <= step and number not in self.refused]
        for number in {*before[: -self.keep], *self.refused}:
            try:
                self.store.delete_dir(_name(number))
            except StorageError as error:  # it takes space, and harms nothing
                logger.warning("an old checkpoint stays: %s", error)
        self.refused.clear()

    def find(self) -> Found:
        """The newest checkpoint that is whole and as it was written.

        Raises: CheckpointError when there are checkpoints and none is; StorageError when the storage does not answer.
        """
        reasons = []
        for step in reversed(self._insist(self.steps)):
            if self._insist(functools.partial(self._is_unfinished, _name(step))):
                continue
            folder = self._insist(functools.partial(self._folder, step))
            try:
                verify(folder)
            except CheckpointError as error:
                self.refused.add(step)
                # Without the folder that it was copied to from an object store, and the advice that is followed here.
                reason = str(error).partition("; take an older")[0]
                reasons.append(reason.replace(str(folder), self.store.path(_name(step))))
            else:
                return Found(step, tuple(reasons))
        if reasons:
            raise CheckpointError(
                f"{self.store.uri}: no checkpoint there can be trusted: {'; '.join(reasons)}; put one back that can, "
                "or delete them all, and the same command trains anew"
            )
        return Found()

    @contextlib.contextmanager
    def opened(self, step: int | None) -> Iterator[Path | None]:
        """The checkpoint of `step` in a folder of this machine, for as long as the block; None where there is none."""
        try:
            yield None if step is None else self._insist(lambda: self._folder(step))
        finally:
            if self._fetched is not None:
                self._fetched[1].cleanup()
                self._fetched = None

    def clear(self) -> None:
        """Remove what killed writers of this run left; called by the only one that writes now."""
        for name in self._insist(self.store.list_names):
            unfinished = functools.partial(self._is_unfinished, name)
            if TEMPORARY.fullmatch(name) or (NAME.fullmatch(name) and self._insist(unfinished)):
                self._insist(functools.partial(self.store.delete_dir, name))

    def _is_unfinished(self, name: str) -> bool:
        """Whether a checkpoint on an object store was being written. Of one that was just begun there may be no more
        than its folder."""
        if self.store.is_local:
            return False
        files = self.store.list_names(name)
        return not files or UNFINISHED in files

    def _insist(self, call: Callable[[], Value]) -> Value:
        """What `call` gives; on an object store it is tried again where that does not answer."""
        for pause in () if self.store.is_local else PAUSES_SECONDS:
            try:
                return call()
            except StorageError as error:
                logger.warning("%s; trying again in %g s", error, pause)
                time.sleep(pause)
        return call()

    def _folder(self, step: int) -> Path:
        if self.store.is_local:
            return self.store.local_path(_name(step))
        if self._fetched is None or self._fetched[0] != step:
            fetched = tempfile.TemporaryDirectory(prefix="atelier-checkpoint-")
            _fetch(self.store.child(_name(step)), Path(fetched.name))
            self._fetched = step, fetched
        return Path(self._fetched[1].name)

    def _put_renamed(self, step: int, write: Callable[[Path], None]) -> None:
        self.store.make_dir()
        target = self.store.local_path(_name(step))
        written, aside = (target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp") for _ in range(2))
        try:
            write(written)
            with _explained(target):
                if target.exists():  # refused, or of a writer that is not heard of any more
                    target.rename(aside)
                try:
                    written.rename(target)
                except OSError:
                    if aside.exists():
                        aside.rename(target)
                    raise
                shutil.rmtree(aside, ignore_errors=True)
                _sync(target.parent)
        finally:
            shutil.rmtree(written, ignore_errors=True)

    def _put_uploaded(self, step: int, write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="atelier-checkpoint-") as temporary:
            folder, target = Path(temporary, "new"), self.store.child(_name(step))
            write(folder)
            self._insist(lambda: _upload(folder, target))


def shelf_of(store: Store, run_key: str, training: TrainingSpec) -> Shelf:
    """That of a run, in its folder of the storage."""
    return Shelf(store.child("training", run_key), training.keep_checkpoints)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _upload(folder: Path, target: Store) -> None:
    target.delete_dir()
    target.make_dir()
    target.write_bytes(b"", UNFINISHED)
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == STATE, path.name)):
        with path.open("rb") as source, target.open_output(path.name) as sink:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)
    target.delete_file(UNFINISHED)


def _fetch(source: Store, folder: Path) -> None:
    for name in source.list_names():
        source.download(folder / name, name)


def _sync(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{target}: the checkpoint cannot be put there: {error}; check the permissions") from error
