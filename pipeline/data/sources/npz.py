"""Arrays of pictures in a NumPy archive, read in ranges of rows."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.data.layout import Modality
from pipeline.data.records import Known, Record, Unit, make_record
from pipeline.data.sources.paths import PathCorpus
from pipeline.errors import CorpusError
from pipeline.spec import NpzSource

ROWS_PER_UNIT = 5000

DAMAGED = (zipfile.BadZipFile, OSError, ValueError, EOFError, zlib.error, pa.ArrowException)


class NpzCorpus(PathCorpus):
    """One archive; a unit is a range of rows of one array. Training pictures come before test pictures."""

    modalities = ("image",)
    source: NpzSource

    def __init__(self, source: NpzSource, modality: Modality) -> None:
        super().__init__(source, modality)
        if not self.location.is_file:
            raise CorpusError(f"{self.location.shown}: this is a folder; data.source.kind 'npz' reads one file")
        with self._opened_now() as file:
            for key, name, labels in self._arrays():
                shape, dtype, _ = self._header(file, f"data.source.{key}", name)
                if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
                    raise CorpusError(
                        f"{self.location.shown}: array {name!r} is {dtype} {list(shape)}; pictures are uint8 [N, H, W] "
                        "or [N, H, W, C]"
                    )
                if labels is not None and self._header(file, f"data.source.{key}_labels", labels)[0][:1] != shape[:1]:
                    raise CorpusError(
                        f"{self.location.shown}: {labels!r} does not have a label for each of {shape[0]:,} pictures"
                    )

    def _arrays(self) -> list[tuple[str, str, str | None]]:
        """(split, array, array of labels), the training pictures first."""
        source = self.source
        test = [] if source.test is None else [("test", source.test, source.test_labels)]
        return [("train", source.train, source.train_labels), *test]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DAMAGED as error:
            raise CorpusError(f"{self.location.shown}: cannot be read as a NumPy archive: {error}") from None

    @contextmanager
    def _opened_now(self) -> Iterator[BinaryIO]:
        with self._explained(), self.location.open(self.names()[0]) as file:
            yield file

    def _header(self, file: BinaryIO, key: str, name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
        """Shape, type and whether in Fortran's order, without reading the array."""
        with zipfile.ZipFile(file) as archive:
            members = {Path(member).stem: member for member in archive.namelist() if member.endswith(".npy")}
            if name not in members:
                raise CorpusError(
                    f"{self.location.shown}: there is no array {name!r} ({key}); it has {', '.join(members)}"
                )
            with archive.open(members[name]) as member:
                return _read_header(member)

    def _units(self, known: Known) -> Iterable[Unit]:
        (source_file,), first = self.files(), 0
        with self._opened_now() as file:
            shapes = {name: self._header(file, "", name)[0] for _, name, _ in self._arrays()}
        for split, name, labels in self._arrays():
            rows = shapes[name][0]
            for start in range(0, rows, ROWS_PER_UNIT):
                count = min(rows - start, ROWS_PER_UNIT)
                keys = {"split": split, "array": name, "labels": labels, "start": start, "stop": start + count}
                size = count * math.prod(shapes[name][1:])
                yield {**self.unit_of([source_file], index=first + start, count=count, **keys), "bytes": size}
            first += rows

    def _items(self, unit: Unit) -> Iterator[Any]:
        start, stop = unit["start"], unit["stop"]
        with self.opened(unit) as file, self._explained():
            pictures = _read_rows(file, unit["array"], start, stop)
            labels = None if unit["labels"] is None else _read_rows(file, unit["labels"], start, stop)
        for place in range(stop - start):
            label = None if labels is None else str(labels[place])
            yield unit, start + place, unit["index"] + place, pictures[place], label

    def _record(self, item: Any) -> Record:
        unit, row, index, picture, label = item
        name = unit["files"][0][0]
        given = unit["split"] if self.source.test is not None else None
        return make_record(f"{name}#{unit['array']}:{row}", picture, label, given, name=name, index=index)


def _read_rows(file: BinaryIO, name: str, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` of an array, unpacking no more than comes before them."""
    with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
        shape, dtype, in_fortran_order = _read_header(member)
        if in_fortran_order or dtype.hasobject:
            member.seek(0)
            return np.asarray(np.lib.format.read_array(member, allow_pickle=False))[start:stop]
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        member.seek(start * row_bytes, 1)
        data = member.read((stop - start) * row_bytes)
        return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, in_fortran_order, dtype = read(file)
    return shape, dtype, in_fortran_order
