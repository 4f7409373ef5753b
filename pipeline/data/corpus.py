"""Corpora: from a source in the spec to records, without decoding them; one class a `data.source.kind`.

The driver opens a corpus, fingerprints it and cuts it into units (JSON-able work items); Ray Data's workers read
units. Paths must be visible to both.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.builtin import BUILTINS
from pipeline.data.layout import Modality
from pipeline.data.records import (
    Corpus,
    PathCorpus,
    Record,
    Unit,
    is_hidden,
    make_record,
    open_unpacked,
    walk_names,
    wrong_modality,
)
from pipeline.errors import CorpusError
from pipeline.spec import BuiltinSource, JsonLinesSource, LinesSource, NamedFiles, NpzSource, ParquetSource, Source

EXTENSIONS: dict[Modality, frozenset[str]] = {
    "text": frozenset({".txt", ".text", ".md", ".rst"}),
    "image": frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}),
    "audio": frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"}),
}
FILES_PER_UNIT = 1000
ROWS_PER_UNIT = 30_000


class BuiltinCorpus(Corpus):
    """One of `BUILTINS`, as a single unit."""

    def __init__(self, source: BuiltinSource, modality: Modality) -> None:
        super().__init__(source, modality)
        self.builtin = BUILTINS[source.name]
        if self.builtin.modality != modality:
            wrong_modality(f"the builtin corpus {source.name!r} is {self.builtin.modality}", modality)

    @property
    def licence(self) -> str:
        return self.source.licence or self.builtin.licence

    def fingerprint(self) -> str:
        return hashlib.sha256(self.builtin.version().encode()).hexdigest()

    def _units(self) -> Iterable[Unit]:
        return [{"name": self.source.name, "count": self.builtin.count}]

    def _items(self, unit: Unit) -> Iterator[Any]:
        return enumerate(self.builtin.items())

    def _record(self, item: Any) -> Record:
        index, (payload, label) = item
        return make_record(f"{self.source.name}:{index}", payload, label, rate=self.builtin.rate)


class NamedCorpus(PathCorpus):
    """What files and tar members share: which names belong to the corpus, and what a name tells."""

    source: NamedFiles

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The names that are records: of the modality when `glob` is the default, else all that it matches.

        Raises: CorpusError when there is none, or when a pattern of the source matches none.
        """
        seen = [name for name in names if not is_hidden(name)]
        chosen = [name for name in seen if self.belongs(name)]
        if not chosen:
            suffixes = Counter(PurePosixPath(name).suffix.lower() or "no extension" for name in seen)
            found = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(4)) or "nothing"
            wanted = f"ends with {', '.join(sorted(EXTENSIONS[self.modality]))}"
            if self.source.glob != "**/*":
                wanted = f"matches data.source.glob {self.source.glob!r}"
            raise CorpusError(
                f"{self.root}: no file in it {wanted} (it holds {found}); set data.source.path or .glob, or take a "
                f"data.codec of another modality than {self.modality}"
            )
        for key in ("label_pattern", "test_pattern"):
            pattern = getattr(self.source, key)
            if pattern is not None and not any(re.search(pattern, name) for name in chosen):
                raise CorpusError(f"data.source.{key} {pattern!r} matches no name; the first is {chosen[0]!r}")
        return chosen

    def belongs(self, name: str) -> bool:
        if is_hidden(name):
            return False
        if self.source.glob == "**/*":
            return PurePosixPath(name).suffix.lower() in EXTENSIONS[self.modality]
        return _glob_expression(self.source.glob).fullmatch(name) is not None

    def named_record(self, name: str, origin: str, payload: bytes, error: str | None = None) -> Record:
        source, label = self.source, None
        if source.label_from == "folder":
            label = PurePosixPath(name).parent.name or None
        elif source.label_pattern is not None:
            match = re.search(source.label_pattern, name)
            label = match.group(1) if match else None
        split = None
        if source.test_pattern is not None:
            split = "test" if re.search(source.test_pattern, name) else "train"
        return make_record(origin, payload, label, split, error=error)


class FilesCorpus(NamedCorpus):
    """A folder of files; units are chunks of names."""

    def names(self) -> list[str]:
        return [self.root.name] if self.root.is_file() else self.chosen(walk_names(self.root))

    @property
    def single_document(self) -> bool:  # type: ignore[override]
        return len(self.names()) == 1

    def _units(self) -> Iterable[Unit]:
        names = self.names()
        chunks = [names[start : start + FILES_PER_UNIT] for start in range(0, len(names), FILES_PER_UNIT)]
        return [{"names": chunk, "count": len(chunk)} for chunk in chunks]

    def _items(self, unit: Unit) -> Iterator[Any]:
        return iter(unit["names"])

    def _record(self, item: Any) -> Record:
        try:
            return self.named_record(item, item, self.path_of(item).read_bytes())
        except OSError as error:
            return self.named_record(item, item, b"", error=f"cannot be read: {error.strerror or error}")


class TarCorpus(NamedCorpus):
    """The members of one tar file, as a single unit read from its beginning to its end."""

    def __init__(self, source: NamedFiles, modality: Modality) -> None:
        super().__init__(source, modality)
        if not self.root.is_file():
            raise CorpusError(f"{self.root}: this is a folder; data.source.kind 'tar' reads one file")

    def names(self) -> list[str]:
        return [self.root.name]

    def _members(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        # tarfile's own unpacking ends quietly where a file was cut short between two members.
        try:
            with open_unpacked(self.root) as file, tarfile.open(fileobj=file, mode="r|") as archive:
                for member in archive:
                    if member.isfile():
                        yield archive, member
        except tarfile.TarError as error:
            raise CorpusError(f"{self.root}: not a tar file, or not a whole one ({error})") from None

    def _units(self) -> Iterable[Unit]:
        return [{"tar": self.root.name}]

    def _items(self, unit: Unit) -> Iterator[Any]:
        names: list[str] = []
        for archive, member in self._members():
            names.append(_plain(member.name))
            if self.belongs(names[-1]):
                yield archive, member
        self.chosen(names)  # only now are all names known: raises when none was of use

    def _record(self, item: Any) -> Record:
        archive, member = item
        name = _plain(member.name)
        return self.named_record(name, f"{self.root.name}#{name}", archive.extractfile(member).read())


class LinesCorpus(PathCorpus):
    """Text files: a unit a file; a record a line, or the whole file."""

    suffixes = (".txt", ".text", ".md", ".rst", ".txt.gz", ".txt.xz", ".txt.bz2")
    modalities = ("text",)
    source: LinesSource

    @property
    def encoding(self) -> str:
        return "utf-8" if self.source.encoding == "auto" else self.source.encoding

    def __init__(self, source: LinesSource, modality: Modality) -> None:
        super().__init__(source, modality)
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise CorpusError(
                f"data.source.encoding {source.encoding!r} is unknown; 'utf-8' is the usual one"
            ) from None

    @property
    def single_document(self) -> bool:  # type: ignore[override]
        return self.source.record == "file" and len(self.names()) == 1

    def _units(self) -> Iterable[Unit]:
        return [{"name": name} for name in self.names()]

    def _items(self, unit: Unit) -> Iterator[Any]:
        name, encoding = unit["name"], self.encoding
        # A byte that the encoding does not allow becomes a lone surrogate, which _record looks for.
        with (
            open_unpacked(self.path_of(name)) as raw,
            io.TextIOWrapper(raw, encoding, errors="surrogateescape") as file,
        ):
            if self.source.record == "file":
                yield name, file.read()
            else:
                for number, line in enumerate(file, start=1):
                    yield f"{name}:{number}", line.rstrip("\n")

    def _record(self, item: Any) -> Record:
        origin, text = item
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as wrong:
            byte = ord(text[wrong.start]) & 0xFF
            reason = f"not {self.encoding}: byte 0x{byte:02x} at character {wrong.start:,}"
            return make_record(origin, "", error=f"{reason}; set data.source.encoding")
        return make_record(origin, text)


class JsonLinesCorpus(PathCorpus):
    """JSON lines: a unit a file."""

    suffixes = tuple(f"{name}{packed}" for name in (".jsonl", ".ndjson") for packed in ("", ".gz", ".xz", ".bz2"))
    modalities = ("text",)
    source: JsonLinesSource

    def _units(self) -> Iterable[Unit]:
        return [{"name": name} for name in self.names()]

    def _items(self, unit: Unit) -> Iterator[Any]:
        name = unit["name"]
        with open_unpacked(self.path_of(name)) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{name}:{number}", line

    def _record(self, item: Any) -> Record:
        origin, line = item
        field, label_field = self.source.text_field, self.source.label_field
        try:
            values = json.loads(line)
        except ValueError as wrong:
            return make_record(origin, "", error=f"not a line of JSON: {wrong}")
        if not isinstance(values, dict) or not isinstance(values.get(field), str):
            keys = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
            return make_record(origin, "", error=f"no text under {field!r} (it has {keys}); set data.source.text_field")
        label = values.get(label_field) if label_field else None
        return make_record(origin, values[field], None if label is None else str(label))


class ParquetCorpus(PathCorpus):
    """A column of Parquet files: strings, or the bytes of encoded files (bare, or as `bytes` of a struct)."""

    suffixes = (".parquet",)
    source: ParquetSource

    def __init__(self, source: ParquetSource, modality: Modality) -> None:
        super().__init__(source, modality)
        for name in self.names():
            schema = self._file(name).schema_arrow
            for key, column in (("column", source.column), ("label_field", source.label_field)):
                if column is not None and column not in schema.names:
                    raise CorpusError(
                        f"{self.path_of(name)}: there is no column {column!r} (data.source.{key}); it has "
                        f"{', '.join(schema.names)}"
                    )
            self._check_type(name, schema.field(source.column).type)

    def _check_type(self, name: str, kind: pa.DataType) -> None:
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        if is_text != (self.modality == "text") or not (is_text or is_bytes):
            wrong_modality(f"{self.path_of(name)}: column {self.source.column!r} is {kind}", self.modality)

    def _file(self, name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path_of(name))
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(f"{self.path_of(name)}: cannot be read as Parquet: {error}") from None

    def _units(self) -> Iterable[Unit]:
        for name in self.names():
            metadata, row = self._file(name).metadata, 0
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                yield {"name": name, "row_group": group, "row": row, "count": rows}
                row += rows

    def _items(self, unit: Unit) -> Iterator[Any]:
        columns = [name for name in (self.source.column, self.source.label_field) if name]
        batches = self._file(unit["name"]).iter_batches(1024, row_groups=[unit["row_group"]], columns=columns)
        row = unit["row"]
        for batch in batches:
            labels = batch[columns[1]] if len(columns) > 1 else pa.nulls(len(batch))
            for value, label in zip(batch[columns[0]], labels, strict=True):
                yield f"{unit['name']}:{row}", value.as_py(), label.as_py()
                row += 1

    def _record(self, item: Any) -> Record:
        origin, value, label = item
        payload = value.get("bytes") if isinstance(value, dict) else value
        if payload is None:
            return make_record(origin, b"", error=f"column {self.source.column!r} is null")
        return make_record(origin, payload, None if label is None else str(label))


class NpzCorpus(PathCorpus):
    """Arrays of pictures in a NumPy archive; units are ranges of rows of one array."""

    modalities = ("image",)
    source: NpzSource

    def __init__(self, source: NpzSource, modality: Modality) -> None:
        super().__init__(source, modality)
        if not self.root.is_file():
            raise CorpusError(f"{self.root}: this is a folder; data.source.kind 'npz' reads one file")
        for key, name, labels in self._arrays():
            shape, dtype = self._header(f"data.source.{key}", name)
            if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
                raise CorpusError(
                    f"{self.root}: array {name!r} is {dtype} {list(shape)}; pictures are uint8 [N, H, W] or "
                    "[N, H, W, C]"
                )
            if labels is not None and self._header(f"data.source.{key}_labels", labels)[0][:1] != shape[:1]:
                raise CorpusError(f"{self.root}: {labels!r} does not have a label for each of {shape[0]:,} pictures")

    def names(self) -> list[str]:
        return [self.root.name]

    def _arrays(self) -> list[tuple[str, str, str | None]]:
        """(split, array, array of labels), the training pictures first."""
        source = self.source
        test = [] if source.test is None else [("test", source.test, source.test_labels)]
        return [("train", source.train, source.train_labels), *test]

    def _header(self, key: str, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of an array, without reading it."""
        try:
            with zipfile.ZipFile(self.root) as archive:
                members = {Path(member).stem: member for member in archive.namelist() if member.endswith(".npy")}
                if name not in members:
                    raise CorpusError(f"{self.root}: there is no array {name!r} ({key}); it has {', '.join(members)}")
                with archive.open(members[name]) as file:
                    version = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_1_0
                    shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
                    return shape, dtype
        except (zipfile.BadZipFile, OSError, ValueError, zlib.error) as error:
            raise CorpusError(f"{self.root}: cannot be read as a NumPy archive: {error}") from None

    def _units(self) -> Iterable[Unit]:
        for split, name, labels in self._arrays():
            rows = self._header("", name)[0][0]
            for start in range(0, rows, ROWS_PER_UNIT):
                count = min(rows - start, ROWS_PER_UNIT)
                yield {"split": split, "array": name, "labels": labels, "start": start, "count": count}

    def _items(self, unit: Unit) -> Iterator[Any]:
        try:
            with np.load(self.root, allow_pickle=False) as archive:
                pictures = archive[unit["array"]]
                labels = None if unit["labels"] is None else archive[unit["labels"]]
        except (zipfile.BadZipFile, OSError, ValueError, zlib.error) as error:
            raise CorpusError(f"{self.root}: cannot be read as a NumPy archive: {error}") from None
        for row in range(unit["start"], unit["start"] + unit["count"]):
            label = None if labels is None else str(labels[row])
            yield f"{self.root.name}#{unit['array']}:{row}", pictures[row], label, unit["split"]

    def _record(self, item: Any) -> Record:
        origin, picture, label, split = item
        return make_record(origin, picture, label, split if self.source.test is not None else None)


CORPORA: dict[str, Callable[[Any, Modality], Corpus]] = {
    "builtin": BuiltinCorpus,
    "files": FilesCorpus,
    "tar": TarCorpus,
    "lines": LinesCorpus,
    "jsonl": JsonLinesCorpus,
    "parquet": ParquetCorpus,
    "npz": NpzCorpus,
}


def open_corpus(source: Source, modality: Modality) -> Corpus:
    """The corpus of a source. Raises: CorpusError when it is missing, empty or of another modality."""
    return CORPORA[cast(Any, source).kind](source, modality)


def _plain(name: str) -> str:
    """A tar member's name without a leading `./`."""
    return name.removeprefix("./")


def _glob_expression(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression: `**` is any number of folders, `*` and `?` stay within one."""
    parts = glob.split("/")
    expression = ""
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if part == "**":
            expression += ".*" if last else "(?:[^/]+/)*"
        else:
            pieces = re.split(r"([*?])", part)
            expression += "".join({"*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece)) for piece in pieces)
            expression += "" if last else "/"
    return re.compile(expression)
