"""The built-in corpora as a source: one unit each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.data.builtin import BUILTINS, Builtin
from pipeline.data.layout import Modality
from pipeline.data.records import Corpus, Known, Record, SourceFile, Unit, make_record, wrong_modality
from pipeline.spec import BuiltinSource


class BuiltinCorpus(Corpus):
    """One of `BUILTINS`; its digest is that of its version."""

    def __init__(self, source: BuiltinSource, modality: Modality) -> None:
        super().__init__(source, modality)
        if self.builtin.modality != modality:
            wrong_modality(f"the builtin corpus {source.name!r} is {self.builtin.modality}", modality)

    @property
    def builtin(self) -> Builtin:
        return BUILTINS[self.source.name]

    @property
    def licence(self) -> str:
        return self.source.licence or self.builtin.licence

    def _scan(self) -> list[SourceFile]:
        return [SourceFile(self.source.name, 0, hashlib.sha256(self.builtin.version().encode()).hexdigest())]

    def _units(self, known: Known) -> Iterable[Unit]:
        (file,) = self.files()
        files = [[file.name, file.digest]]
        return [{"kind": "builtin", "files": files, "guard": [[0, 0]], "bytes": 0, "count": self.builtin.count}]

    def _items(self, unit: Unit) -> Iterator[Any]:
        return enumerate(self.builtin.items())

    def _record(self, item: Any) -> Record:
        index, (payload, label) = item
        name = self.source.name
        return make_record(f"{name}:{index}", payload, label, rate=self.builtin.rate, name=name, index=index)
