"""Text files whose records are lines, paragraphs or whole files; big ones are read in ranges of bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from pipeline.data.encodings import AUTO, EncodingFinder, keeps_ascii, lenient_reader, undecoded
from pipeline.data.records import Known, Record, Unit, content_id, make_record
from pipeline.data.sources.cuts import CutFinder, Ends
from pipeline.data.sources.named import NamedCorpus
from pipeline.data.sources.paths import Watcher, WholeFilesCorpus, is_packed, unpacked
from pipeline.data.sources.ranges import RangesCorpus, found_encoding
from pipeline.spec import LinesSource

PACKED = ("", ".gz", ".xz", ".bz2")


class LinesCorpus(NamedCorpus, WholeFilesCorpus, RangesCorpus):
    """Text files: a record a line, a paragraph, or the whole file. A line is empty when it has spaces and tabs only."""

    suffixes = tuple(f"{name}{packed}" for name in (".txt", ".text", ".md", ".rst") for packed in PACKED)
    modalities = ("text",)
    source: LinesSource

    @property
    def files_are_records(self) -> bool:
        return self.source.record == "file"

    def _watchers(self, name: str, size: int) -> tuple[Watcher, ...]:
        if self.files_are_records or not self.is_cut(name, size):
            return ()
        ends: Ends = "paragraph" if self.source.record == "paragraph" else "line"
        finder = (EncodingFinder(),) if self.source.encoding == AUTO else ()
        return (CutFinder(self.range_bytes, ends), *finder)

    def _seen(self, name: str, watchers: tuple[Watcher, ...]) -> tuple[str | None, tuple[tuple[int, int], ...]]:
        cuts, *finder = watchers
        assert isinstance(cuts, CutFinder)
        encoding = self.source.encoding
        if finder:
            assert isinstance(finder[0], EncodingFinder)
            with self.location.open(name) as file:
                encoding = found_encoding(finder[0], file)
        return encoding, cuts.finish() if keeps_ascii(encoding) else ()

    def _units(self, known: Known) -> Iterable[Unit]:
        return self.range_units(known, count_lines=self.source.record == "line")

    def _items(self, unit: Unit) -> Iterator[Any]:
        if self.files_are_records:
            yield from self.fetch_all(unit)
            return
        for place, (name, _) in enumerate(unit["files"]):
            with self.part(unit, place, twice=self.source.encoding == AUTO) as (file, first):
                encoding = unit.get("encoding") or self.encoding_of(file)
                told = {"name": name, "facts": {"encoding": encoding}, **self.told_by(name)}
                lines = enumerate(_lines(file, encoding, first == 1), start=first)
                for number, text in _paragraphs(lines) if self.source.record == "paragraph" else lines:
                    yield number, text, told

    def _record(self, item: Any) -> Record:
        if self.files_are_records:
            return self._whole_record(*item)
        number, text, told = item
        wrong = undecoded(text, told["facts"]["encoding"])
        return make_record(f"{told['name']}:{number}", "" if wrong else text, error=wrong, index=number, **told)

    def _whole_record(self, name: str, data: bytes, error: str | None) -> Record:
        if error is None and is_packed(name):
            with unpacked(io.BytesIO(data), name, self.location.shown_path(name)) as content:
                data = content.read()
        record = self.file_record(name, data, error)
        if isinstance(record["payload"], str):
            record["payload"] = record["payload"].replace("\r\n", "\n").replace("\r", "\n")
            record["id"] = content_id(record["payload"])
        return record


def _lines(file: BinaryIO, encoding: str, at_start: bool) -> Iterator[str]:
    """Lines without their ends; what cannot be decoded is left in them as lone surrogates or U+FFFD."""
    with lenient_reader(file, encoding, at_start) as text:
        for line in text:
            yield line.rstrip("\n")


def _paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """(number of the first line, text) of each run of lines that are not empty."""
    first, run = 0, list[str]()
    for number, line in lines:
        if line.strip(" \t"):
            first = first if run else number
            run.append(line)
        elif run:
            yield first, "\n".join(run)
            run = []
    if run:
        yield first, "\n".join(run)
