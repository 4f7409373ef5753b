"""Hugging Face datasets: a folder that `save_to_disk` wrote, or a dataset by its name. Needs the extra `huggingface`.

Pictures and sound are handed on as the encoded bytes that they are stored as; `datasets` decodes none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.layout import Modality
from pipeline.data.records import Corpus, Known, Record, SourceFile, Unit, make_record, wrong_modality
from pipeline.data.sources.fields import SPLITS, row_record
from pipeline.data.sources.paths import PathCorpus
from pipeline.errors import CorpusError
from pipeline.spec import HuggingFaceSource

ROWS_PER_UNIT = 5000
ROWS_PER_BATCH = 64
DEFAULT_SPLIT = ""


def open_huggingface(source: HuggingFaceSource, modality: Modality) -> Corpus:
    """The saved dataset at `source.path`, or, where there is no such folder, the one of that name on the hub.

    Raises: CorpusError when `datasets` is not installed, or there is no such dataset.
    """
    return HubCorpus(source, modality) if is_on_hub(source) else SavedCorpus(source, modality)


def is_on_hub(source: Any) -> bool:
    """Whether a source of any kind is a dataset's name rather than a path."""
    if not isinstance(source, HuggingFaceSource):
        return False
    return "://" not in source.path and not Path(source.path).expanduser().exists()


class _RowsCorpus(Corpus):
    """What saved and named datasets share: rows of splits, a unit a range of them."""

    source: HuggingFaceSource

    def _load(self) -> dict[str, Any]:
        """Datasets by split, in the corpus's order."""
        raise NotImplementedError

    def _files_of(self, split: str) -> list[SourceFile]:
        raise NotImplementedError

    def _check_unchanged(self, unit: Unit) -> None:
        """Raises: CorpusError when a file of the unit was changed."""

    def _splits(self) -> dict[str, Any]:
        """The columns that are asked for, encoded as they are. Raises: CorpusError when one is of another modality."""
        datasets = _import_datasets()
        splits = {}
        for split, dataset in self._load().items():
            names, wanted = dataset.column_names, set[str]()
            for key in ("column", "label_field", "group_field", "split_field", "prompt_field"):
                column = getattr(self.source, key)
                if column is not None and column not in names:
                    raise CorpusError(
                        f"{self.source.path}: there is no column {column!r} (data.source.{key}); it has "
                        f"{', '.join(names)}"
                    )
                wanted |= {column} if column is not None else set()
            feature = dataset.features[self.source.column]
            if self.modality not in _modalities_of(feature, datasets):
                wrong_modality(f"{self.source.path}: column {self.source.column!r} is {feature}", self.modality)
            dataset = dataset.select_columns(sorted(wanted))
            if isinstance(feature, datasets.Image | datasets.Audio):
                dataset = dataset.cast_column(self.source.column, type(feature)(decode=False))
            splits[split] = dataset
        return splits

    def _units(self, known: Known) -> Iterable[Unit]:
        first = 0
        for split, dataset in self._splits().items():
            files, rows = self._files_of(split), len(dataset)
            for start in range(0, rows, ROWS_PER_UNIT):
                stop = min(rows, start + ROWS_PER_UNIT)
                yield {
                    "kind": self.source.kind,
                    "files": [[file.name, file.digest] for file in files],
                    "guard": [[file.size, file.modified_ns] for file in files],
                    "bytes": sum(file.size for file in files) * (stop - start) // rows,
                    "split": split,
                    "start": start,
                    "stop": stop,
                    "index": first + start,
                    "count": stop - start,
                }
            first += rows

    def _items(self, unit: Unit) -> Iterator[Any]:
        self._check_unchanged(unit)
        dataset = self._splits()[unit["split"]]
        classes = getattr(dataset.features.get(self.source.label_field), "names", None)
        for place, row in enumerate(_rows(dataset, unit["start"], unit["stop"])):
            label = row.get(str(self.source.label_field))
            if classes and isinstance(label, int):
                row[str(self.source.label_field)] = classes[label] if 0 <= label < len(classes) else None
            yield unit["split"], unit["start"] + place, unit["index"] + place, row
        self._check_unchanged(unit)

    def _record(self, item: Any) -> Record:
        split, number, index, row = item
        name = PurePosixPath(self.source.path).name
        origin = f"{name}#{split}:{number}" if split != DEFAULT_SPLIT else f"{name}:{number}"
        payload = row[self.source.column]
        if isinstance(payload, dict):
            path = payload.get("path")
            payload = payload.get("bytes")
            if payload is None and path and Path(path).is_file():
                payload = Path(path).read_bytes()
        if payload is None:
            error = f"column {self.source.column!r} is null"
            return make_record(origin, b"", error=error, name=name, index=index)
        record = row_record(self.source, row, payload, origin, name, index)
        if record["split"] is None:
            record["split"] = SPLITS.get(split)
        return record


class SavedCorpus(_RowsCorpus, PathCorpus):
    """A folder that `save_to_disk` wrote, of one dataset or of one with splits."""

    def __init__(self, source: HuggingFaceSource, modality: Modality) -> None:
        super().__init__(source, modality)
        if not self.location.is_local:
            raise CorpusError(f"{self.location.shown}: a saved dataset is read from a folder; copy it to one")
        self._splits()

    def _list_names(self) -> list[str]:
        # `datasets` leaves the results of other programs' `map` in the folder.
        return [name for name in self.location.names() if not PurePosixPath(name).name.startswith("cache-")]

    def _load(self) -> dict[str, Any]:
        datasets = _import_datasets()
        try:
            loaded = datasets.load_from_disk(self.location.root)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{self.location.shown}: cannot be read as a saved dataset: {error}") from None
        return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {DEFAULT_SPLIT: loaded}

    def _files_of(self, split: str) -> list[SourceFile]:
        prefix = f"{split}/" if split != DEFAULT_SPLIT else ""
        return [file for file in self.files() if file.name.startswith(prefix)]

    def _check_unchanged(self, unit: Unit) -> None:
        for number in range(len(unit["files"])):
            self.check_unchanged(unit, number)


class HubCorpus(_RowsCorpus):
    """A dataset by its name, which `datasets` fetches into its own cache; its digest is of `datasets`' fingerprint."""

    def __init__(self, source: HuggingFaceSource, modality: Modality) -> None:
        super().__init__(source, modality)
        self._splits()

    def _load(self) -> dict[str, Any]:
        datasets = _import_datasets()
        try:
            loaded = datasets.load_dataset(self.source.path, self.source.config, revision=self.source.revision)
        except Exception as error:  # the hub's client raises errors of many libraries
            raise CorpusError(
                f"data.source.path {self.source.path!r}: there is no such folder, and no dataset of that name can be "
                f"loaded: {error}"
            ) from None
        return dict(loaded)

    def _scan(self) -> list[SourceFile]:
        return [
            SourceFile(split, dataset.dataset_size or 0, hashlib.sha256(dataset._fingerprint.encode()).hexdigest())
            for split, dataset in self._load().items()
        ]

    def _files_of(self, split: str) -> list[SourceFile]:
        return [file for file in self.files() if file.name == split]


def _rows(dataset: Any, start: int, stop: int) -> Iterator[dict[str, Any]]:
    for first in range(start, stop, ROWS_PER_BATCH):
        columns = dataset[first : min(stop, first + ROWS_PER_BATCH)]
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _modalities_of(feature: Any, datasets: Any) -> tuple[Modality, ...]:
    """What a column may hold; bare bytes may be pictures or sound."""
    if isinstance(feature, datasets.Image):
        return ("image",)
    if isinstance(feature, datasets.Audio):
        return ("audio",)
    if isinstance(feature, dict):
        feature = feature.get("bytes")
    dtype = getattr(feature, "dtype", "")
    if dtype in ("string", "large_string"):
        return ("text",)
    return ("image", "audio") if dtype in ("binary", "large_binary") else ()


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise CorpusError(
            "data.source.kind 'huggingface' needs the package datasets, which is not installed: "
            "pip install 'atelier[huggingface]', on every node"
        ) from None
    datasets.disable_progress_bars()
    return datasets
