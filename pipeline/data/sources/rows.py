"""Rows of text files: JSON lines, and CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.data.encodings import AUTO, check_encoding, lenient_reader, undecoded
from pipeline.data.layout import Modality
from pipeline.data.records import Known, Record, Unit, make_record
from pipeline.data.sources.cuts import CutFinder
from pipeline.data.sources.fields import RowError, render_turns, row_record
from pipeline.data.sources.paths import Watcher
from pipeline.data.sources.ranges import RangesCorpus
from pipeline.errors import CorpusError
from pipeline.spec import CsvSource, JsonLinesSource

PACKED = ("", ".gz", ".xz", ".bz2")


class JsonLinesCorpus(RangesCorpus):
    """JSON lines: texts, or dialogues."""

    suffixes = tuple(f"{name}{packed}" for name in (".jsonl", ".ndjson") for packed in PACKED)
    modalities = ("text",)
    source: JsonLinesSource

    def _watchers(self, name: str, size: int) -> tuple[Watcher, ...]:
        return (CutFinder(self.range_bytes, "newline"),) if self.is_cut(name, size) else ()

    def _seen(self, name: str, watchers: tuple[Watcher, ...]) -> tuple[str | None, tuple[tuple[int, int], ...]]:
        (cuts,) = watchers
        assert isinstance(cuts, CutFinder)
        return None, cuts.finish()

    def _units(self, known: Known) -> Iterable[Unit]:
        return self.range_units(known)

    def _items(self, unit: Unit) -> Iterator[Any]:
        for place, (name, _) in enumerate(unit["files"]):
            with self.part(unit, place) as (file, first):
                for number, line in enumerate(file, start=first):
                    if line.strip():
                        yield name, number, line

    def _record(self, item: Any) -> Record:
        name, number, line = item
        origin = f"{name}:{number}"
        try:
            row = json.loads(line)
            text = self._text(row)
        except RowError as wrong:
            return make_record(origin, "", error=str(wrong), name=name, index=number)
        except (ValueError, RecursionError) as wrong:
            return make_record(origin, "", error=f"not a line of JSON: {wrong}", name=name, index=number)
        return row_record(self.source, row, text, origin, name, number)

    def _text(self, row: Any) -> str:
        turns_field, field = self.source.turns_field, self.source.text_field
        values = row if isinstance(row, dict) else {}
        if turns_field is not None and turns_field in values:
            return render_turns(values[turns_field])
        if turns_field is None and isinstance(values.get(field), str):
            return str(values[field])
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        wanted = f"text under {field!r}" if turns_field is None else f"turns under {turns_field!r}"
        key = "text_field" if turns_field is None else "turns_field"
        raise RowError(f"no {wanted} (it has {keys}); set data.source.{key}")


class CsvCorpus(RangesCorpus):
    """CSV files with a line of column names; never cut, since a quoted field may hold ends of lines."""

    suffixes = tuple(f"{name}{packed}" for name in (".csv", ".tsv") for packed in PACKED)
    modalities = ("text",)
    source: CsvSource

    def __init__(self, source: CsvSource, modality: Modality) -> None:
        super().__init__(source, modality)
        check_encoding(source.encoding)

    def _units(self, known: Known) -> Iterable[Unit]:
        return self.range_units(known)

    def _items(self, unit: Unit) -> Iterator[Any]:
        csv.field_size_limit(sys.maxsize)  # the module's own limit is 128 KiB
        for place, (name, _) in enumerate(unit["files"]):
            with self.part(unit, place, twice=self.source.encoding == AUTO) as (file, _):
                encoding = self.encoding_of(file)
                with lenient_reader(file, encoding, newline="") as text:
                    # Strict: a quote that is never closed would quietly swallow the rest of the file.
                    rows = csv.reader(text, delimiter=self.source.delimiter, strict=True)
                    columns = self._columns(name, rows)
                    while (row := self._next_row(name, rows)) is not None:
                        if row[1] != []:
                            yield name, *row, columns, encoding

    def _columns(self, name: str, rows: Any) -> list[str]:
        _, columns = self._next_row(name, rows) or (0, [])
        if not isinstance(columns, list):
            raise CorpusError(f"{self.location.shown_path(name)}: its first line is {columns}")
        fields = ("text_field", "label_field", "group_field", "split_field", "prompt_field")
        for key, column in ((key, getattr(self.source, key)) for key in fields):
            if column is not None and column not in columns:
                raise CorpusError(
                    f"{self.location.shown_path(name)}: there is no column {column!r} (data.source.{key}); its first "
                    f"line has {', '.join(map(repr, columns)) or 'nothing'}; set data.source.{key} or .delimiter"
                )
        return columns

    def _next_row(self, name: str, rows: Any) -> tuple[int, list[str] | str] | None:
        """(number of its first line, the row or why it is none); None at the end."""
        number = rows.line_num + 1
        try:
            return number, next(rows)
        except StopIteration:
            return None
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise CorpusError(
                    f"{self.location.shown_path(name)}: the row that begins at line {number:,} has a quote that is "
                    "never closed"
                ) from None
            return number, f"not CSV: {error}"

    def _record(self, item: Any) -> Record:
        name, number, row, columns, encoding = item
        origin = f"{name}:{number}"
        error = row if isinstance(row, str) else None
        if error is None and len(row) != len(columns):
            error = f"{len(row)} fields, the first line names {len(columns)}"
        values = dict(zip(columns, row, strict=False))
        text = values.get(self.source.text_field, "")
        error = error or undecoded(text, encoding)
        if error is not None:
            return make_record(origin, "", error=error, name=name, index=number, facts={"encoding": encoding})
        return row_record(self.source, values, text, origin, name, number, encoding=encoding)
