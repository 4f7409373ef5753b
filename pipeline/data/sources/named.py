"""Named files: a folder of pictures, recordings or texts, whose paths may tell label, group and split."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from pipeline.data.encodings import check_encoding, decode_text
from pipeline.data.layout import Modality
from pipeline.data.records import Record, Unit, make_record
from pipeline.data.sources.location import is_hidden
from pipeline.data.sources.paths import PathCorpus, WholeFilesCorpus
from pipeline.errors import CorpusError
from pipeline.spec import NamedFiles

EXTENSIONS: dict[Modality, frozenset[str]] = {
    "text": frozenset({".txt", ".text", ".md", ".rst"}),
    "image": frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}),
    "audio": frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"}),
}
EVERYTHING = "**/*"


class NamedCorpus(PathCorpus):
    """What sources of named files share: which names belong to the corpus, and what a name tells."""

    source: NamedFiles

    def __init__(self, source: Any, modality: Modality) -> None:
        super().__init__(source, modality)
        check_encoding(source.encoding)

    def _list_names(self) -> list[str]:
        names = self.location.names()
        return names if self.location.is_file else self.chosen(names)

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The names that are records: of the modality when `glob` is the default, else all that it matches.

        Raises: CorpusError when there is none, or when a pattern of the source matches none.
        """
        seen = [name for name in names if not is_hidden(name)]
        chosen = [name for name in seen if self.belongs(name)]
        if not chosen:
            suffixes = Counter(PurePosixPath(name).suffix.lower() or "no extension" for name in seen)
            found = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(4)) or "nothing"
            wanted = f"ends with {', '.join(self.wanted_suffixes())}"
            if self.source.glob != EVERYTHING:
                wanted = f"matches data.source.glob {self.source.glob!r}"
            raise CorpusError(
                f"{self.location.shown}: no file in it {wanted} (it holds {found}); set data.source.path or .glob, or "
                f"take a data.codec of another modality than {self.modality}"
            )
        for key in self.source.PATTERNS:
            pattern = getattr(self.source, key)
            if pattern is not None and not any(re.search(pattern, name) for name in chosen):
                raise CorpusError(f"data.source.{key} {pattern!r} matches no name; the first is {chosen[0]!r}")
        return chosen

    def wanted_suffixes(self) -> tuple[str, ...]:
        return self.suffixes or tuple(sorted(EXTENSIONS[self.modality]))

    def belongs(self, name: str) -> bool:
        if is_hidden(name):
            return False
        if self.source.glob == EVERYTHING:
            return name.lower().endswith(self.wanted_suffixes())
        return _glob_expression(self.source.glob).fullmatch(name) is not None

    def told_by(self, name: str) -> dict[str, Any]:
        """Label, group, prompt and split of a path in the corpus."""
        source, label, split = self.source, None, None
        if source.label_from == "folder":
            label = posixpath.basename(posixpath.dirname(name)) or None
        elif source.label_pattern is not None:
            label = _first_group(source.label_pattern, name)
        group = _first_group(source.group_pattern, name) if source.group_pattern is not None else None
        prompt = _first_group(source.prompt_pattern, name) if source.prompt_pattern is not None else None
        if source.test_pattern is not None and re.search(source.test_pattern, name):
            split = "test"
        elif source.validation_pattern is not None and re.search(source.validation_pattern, name):
            split = "validation"
        elif source.test_pattern is not None or source.validation_pattern is not None:
            split = "train"
        return {"label": label, "group": group, "prompt": prompt, "split": split}

    def file_record(self, path: str, data: bytes, error: str | None = None, **place: Any) -> Record:
        """The record that a whole file is: its bytes or, in a corpus of texts, its text.

        A text's `facts` have its `encoding` and the `sha256` of the file, since the record's own is of the text.
        """
        origin = place.pop("origin", path)
        told = self.told_by(path)
        if error is not None or self.modality != "text":
            return make_record(origin, data, error=error, **told, **place)
        try:
            text, encoding = decode_text(data, self.source.encoding)  # type: ignore[attr-defined]
        except CorpusError as wrong:
            return make_record(origin, data, error=str(wrong), **told, **place)
        facts = {"encoding": encoding, "sha256": hashlib.sha256(data).hexdigest()}
        return make_record(origin, text, facts=facts, **told, **place)


class FilesCorpus(NamedCorpus, WholeFilesCorpus):
    """A folder of files; a unit is up to 500 of them."""

    def _items(self, unit: Unit) -> Iterator[Any]:
        return self.fetch_all(unit)

    def _record(self, item: Any) -> Record:
        name, data, error = item
        return self.file_record(name, data, error)


def _first_group(pattern: str, name: str) -> str | None:
    match = re.search(pattern, name)
    return match.group(1) if match else None


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
