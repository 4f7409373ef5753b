"""The members of a tar file, streamed from its beginning to its end, as a folder of files would give them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.data.layout import Modality
from pipeline.data.records import Known, Record, Unit
from pipeline.data.sources.named import NamedCorpus
from pipeline.data.sources.paths import unpacked
from pipeline.errors import CorpusError
from pipeline.spec import TarSource


class TarCorpus(NamedCorpus):
    """One tar file, as a single unit: what lies in it is known only at its end."""

    def __init__(self, source: TarSource, modality: Modality) -> None:
        super().__init__(source, modality)
        if not self.location.is_file:
            raise CorpusError(f"{self.location.shown}: this is a folder; data.source.kind 'tar' reads one file")

    def _units(self, known: Known) -> Iterable[Unit]:
        return [self.unit_of([file]) for file in self.files()]

    def _items(self, unit: Unit) -> Iterator[Any]:
        tar = unit["files"][0][0]
        shown = self.location.shown_path(tar)
        names: list[str] = []
        try:
            # tarfile's own unpacking ends quietly where a file was cut short between two members.
            with (
                self.opened(unit) as packed,
                unpacked(packed, tar, shown) as file,
                tarfile.open(fileobj=file, mode="r|") as archive,
            ):
                for index, member in enumerate(archive):
                    name = member.name.removeprefix("./")
                    if not (member.isfile() or member.islnk() or member.issym()):
                        continue
                    names.append(name)
                    if self.belongs(name):
                        yield tar, index, name, archive, member
        except tarfile.TarError as error:
            raise CorpusError(f"{shown}: not a tar file, or not a whole one ({error})") from None
        self.chosen(names)  # only now are all names known: raises when none was of use

    def _record(self, item: Any) -> Record:
        tar, index, name, archive, member = item
        error, data = None, b""
        if member.isfile():
            data = archive.extractfile(member).read()
        else:
            error = f"a link to {member.linkname!r}, which cannot be followed in a tar file; pack the file itself"
        return self.file_record(name, data, error, origin=f"{tar}#{name}", name=tar, index=index)
