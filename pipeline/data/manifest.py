"""The manifest of a prepared set: what it is, what is in it, and how to know that it is whole.

prepared/<key>/train-00000.parquet …  id: string, origin: string, label: string, x: arrow.fixed_shape_tensor
prepared/<key>/records.parquet            record: uint64, split: string (null where quarantined or dropped)
prepared/<key>/manifest.json
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.data.records import Corpus
from pipeline.errors import PreparedDataError
from pipeline.spec import RunSpec

FORMAT_VERSION = 2
SPLITS = ("train", "validation", "test")
FOLDER = "prepared"
MANIFEST = "manifest.json"
RECORDS = "records.parquet"


@dataclass(frozen=True)
class Manifest:
    """What a prepared set is, of JSON types throughout.

    `corpus`: fingerprint, licence, source and `records` (file, count, sha256; sets made before there was such a file
    have none); `codec`: the fitted codec's state; `splits`: for each split its
    `rows` (examples), `records`, `characters` and `utf8_bytes` (text), `tail_tokens` (what a continuous stream
    leaves after its last whole window), `labels` (counts) and `shards` (file, rows, bytes, sha256); `report`:
    what was read, kept, dropped and quarantined, and why.
    """

    format_version: int
    key: str
    corpus: dict[str, Any]
    split: dict[str, Any]
    codec: dict[str, Any]
    layout: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    report: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """Raises: PreparedDataError when a key is missing or the format is not this version's."""
        missing = [field.name for field in fields(cls) if field.name not in values]
        if missing:
            raise PreparedDataError(f"the manifest has no {', '.join(missing)}; run 'atelier prepare' again")
        if values["format_version"] != FORMAT_VERSION:
            raise PreparedDataError(
                f"prepared set {values['key']} has format {values['format_version']}, this version reads "
                f"{FORMAT_VERSION}; run 'atelier prepare' again"
            )
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def prepared_key(spec: RunSpec, corpus: Corpus) -> str:
    """16 hexadecimal digits: what the corpus holds and how it is prepared, wherever it lies."""
    data = spec.data.model_dump(mode="json")
    data["source"].pop("path", None)
    tree = {"format": FORMAT_VERSION, "corpus": corpus.fingerprint(), "data": data}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
