"""A column of Parquet files: texts, dialogues, or the bytes of encoded pictures or sound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.layout import Modality
from pipeline.data.records import Known, Record, Unit, make_record, wrong_modality
from pipeline.data.sources.fields import RowError, render_turns, row_record
from pipeline.data.sources.paths import BYTES_PER_UNIT, PathCorpus
from pipeline.errors import CorpusError
from pipeline.spec import ParquetSource

ROWS_PER_BATCH = 1024


class ParquetCorpus(PathCorpus):
    """Parquet files; a unit is a row group, or neighbours that are small together. Encoded files are bare bytes, or
    `bytes` of a struct."""

    suffixes = (".parquet",)
    source: ParquetSource

    def __init__(self, source: ParquetSource, modality: Modality) -> None:
        super().__init__(source, modality)
        self._check_schema(self.names()[0])

    @property
    def column(self) -> str:
        return self.source.turns_field or self.source.column

    def _check_schema(self, name: str) -> pq.FileMetaData:
        with self._file(name) as file:
            schema = file.schema_arrow
            shown = self.location.shown_path(name)
            payload = "turns_field" if self.source.turns_field else "column"
            for key in (payload, "label_field", "group_field", "split_field", "prompt_field"):
                column = getattr(self.source, key)
                if column is not None and column not in schema.names:
                    raise CorpusError(
                        f"{shown}: there is no column {column!r} (data.source.{key}); it has {', '.join(schema.names)}"
                    )
            self._check_type(f"{shown}: column {self.column!r}", schema.field(self.column).type)
            return file.metadata

    def _check_type(self, what: str, kind: pa.DataType) -> None:
        if self.source.turns_field:
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            if not is_list or not pa.types.is_struct(kind.value_type):
                raise CorpusError(f"{what} is {kind}; data.source.turns_field is a list of {{speaker, text}}")
            if self.modality != "text":
                wrong_modality(f"{what} holds dialogues", self.modality)
            return
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        if is_text != (self.modality == "text") or not (is_text or is_bytes):
            wrong_modality(f"{what} is {kind}", self.modality)

    @contextmanager
    def _file(self, name: str) -> Iterator[pq.ParquetFile]:
        try:
            path, filesystem = self.location.path_of(name), self.location.store.filesystem
            # Behind a URI, a row group's columns are asked for together.
            with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=not self.location.is_local) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(f"{self.location.shown_path(name)}: cannot be read as Parquet: {error}") from None

    def _units(self, known: Known) -> Iterable[Unit]:
        for file in self.files():
            metadata = self._check_schema(file.name)
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            start, row = 0, 0
            while start < len(groups):
                stop, size = start + 1, groups[start].total_byte_size
                while stop < len(groups) and size + groups[stop].total_byte_size <= BYTES_PER_UNIT:
                    size += groups[stop].total_byte_size
                    stop += 1
                rows = sum(group.num_rows for group in groups[start:stop])
                keys = {"row_groups": [start, stop], "row": row, "count": rows}
                yield {**self.unit_of([file], **keys), "bytes": size}
                start, row = stop, row + rows

    def _items(self, unit: Unit) -> Iterator[Any]:
        (name, _), row = unit["files"][0], unit["row"]
        source = self.source
        fields = (source.label_field, source.group_field, source.split_field, source.prompt_field)
        columns = list(dict.fromkeys([self.column, *(field for field in fields if field)]))
        self.check_unchanged(unit, 0)
        try:
            with self._file(name) as file:
                for batch in file.iter_batches(ROWS_PER_BATCH, range(*unit["row_groups"]), columns):
                    for place in range(len(batch)):
                        yield name, row, {column: batch[column][place] for column in columns}
                        row += 1
        except CorpusError:
            self.check_unchanged(unit, 0)  # which says more
            raise
        self.check_unchanged(unit, 0)

    def _record(self, item: Any) -> Record:
        name, number, scalars = item
        origin = f"{name}:{number}"
        try:
            row = {column: scalar.as_py() for column, scalar in scalars.items()}
            payload = row[self.column]
            if self.source.turns_field and payload is not None:
                payload = render_turns(payload)
            elif isinstance(payload, dict):
                payload = payload.get("bytes")
            if payload is None:
                raise RowError(f"column {self.column!r} is null")
        except UnicodeDecodeError as wrong:
            return make_record(origin, b"", error=f"not UTF-8 text: {wrong}", name=name, index=number)
        except RowError as wrong:
            return make_record(origin, b"", error=str(wrong), name=name, index=number)
        return row_record(self.source, row, payload, origin, name, number)
