"""The manifest of a prepared set: what it is, what is in it, and how to know that it is whole.

prepared/<key>/train-00000.parquet …  id, origin, label: string, x: one example's bytes in the stored type, in C order
                                      (dtype and shape are in the column's metadata); with `data.prompt` also prompt:
                                      its tokens likewise
prepared/<key>/records.parquet        record: uint64, split: string (null where quarantined or dropped)
prepared/<key>/manifest.json
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.data.cleaning import Lists, read_lists
from pipeline.data.codec import Codec
from pipeline.data.layout import Modality
from pipeline.data.records import Corpus
from pipeline.errors import PreparedDataError
from pipeline.spec import RunSpec

FORMAT_VERSION = 4
SPLITS = ("train", "validation", "test")
FOLDER = "prepared"
MANIFEST = "manifest.json"
RECORDS = "records.parquet"
PROMPT_KEYS = ("prompt_pattern", "prompt_field")


@dataclass(frozen=True)
class Manifest:
    """What a prepared set is, of JSON types throughout.

    `corpus`: fingerprint, licence, source, `prompt` where the spec has one, and `records` (file, count, sha256; sets
    made by hand may have none);
    `cleaning`, `duplicates`, `split`: how, as in the spec; `codec`: the fitted codec's state; `splits`: for each
    split its `rows` (examples), `records`, `characters` and `utf8_bytes` (text), `tail_tokens` (what a continuous
    stream leaves after its last whole window), `labels` (counts) and `shards` (file, rows, group_rows of each
    row group but the last, bytes, sha256); `report`: what was read, kept, dropped and quarantined, and why
    (`card.describe`). As a dict it also has its own `sha256`. The same corpus and spec give the same manifest,
    byte for byte, whoever prepares and however often the preparation was interrupted.
    """

    format_version: int
    key: str
    corpus: dict[str, Any]
    cleaning: dict[str, Any]
    duplicates: dict[str, Any]
    split: dict[str, Any]
    codec: dict[str, Any]
    layout: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    report: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sha256": self.digest()}

    def digest(self) -> str:
        """sha256 of the manifest as canonical JSON: keys sorted, no spaces, UTF-8."""
        # By way of JSON, so that a manifest is the same before it was written and after it was read.
        values = json.loads(json.dumps(asdict(self)))
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = MANIFEST) -> Manifest:
        """From what `as_dict` gave, read from the file `where`.

        Raises: PreparedDataError when a key is missing, the format is not this version's, or something was changed.
        """
        if values.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            raise PreparedDataError(
                f"{where}: prepared set {values.get('key')} has format {values['format_version']}, this version reads "
                f"{FORMAT_VERSION}; prepare (and train) it again, or use the version that made it"
            )
        missing = [name for name in (*(field.name for field in fields(cls)), "sha256") if name not in values]
        if missing:
            raise PreparedDataError(f"{where}: the manifest has no {', '.join(missing)}; run 'atelier prepare' again")
        manifest = cls(**{field.name: values[field.name] for field in fields(cls)})
        if manifest.digest() != values["sha256"]:
            raise PreparedDataError(
                f"{where}: was edited, its sha256 is {manifest.digest()[:12]}… and not {str(values['sha256'])[:12]}…; "
                "put it back as it was, or delete its folder and run 'atelier prepare' again"
            )
        return manifest


def prepared_key(spec: RunSpec, corpus: Corpus) -> str:
    """16 hexadecimal digits: what the corpus holds and how it is prepared, wherever it lies.

    Raises: CorpusError when a list that the cleaning names cannot be read.
    """
    lists = read_lists(spec.data.cleaning)
    data = spec.data.model_dump(mode="json", exclude={*spec.data.NOT_CONTENT, "source", "prompt"})
    data["source"] = _source(spec)
    if spec.data.prompt is not None:
        data["prompt"] = _prompt(spec, lists)
    data["cleaning"] = _cleaning(spec, corpus.modality, lists) | {"opt_out": lists.opt_out.digest}
    return _hashed({"format": FORMAT_VERSION, "corpus": corpus.fingerprint(), "data": data})


def reading_key(spec: RunSpec, corpus: Corpus, codec: Codec, lists: Lists) -> str:
    """16 hexadecimal digits: all that decides what a part holds, apart from its unit.

    A codec that has to be fitted is not in it, as parts then hold what is not encoded yet; the opt-out list is not
    either, as parts that it concerns are found and read again.
    """
    data = spec.data
    tree = {
        "format": FORMAT_VERSION,
        "source": _source(spec),
        "modality": corpus.modality,
        "codec": None if codec.needs_fit else codec.state(),
        "cleaning": _cleaning(spec, corpus.modality, lists),
        "signed": data.duplicates.near != "off",
        "position": data.split.model_dump(mode="json") if data.split.kind == "position" else None,
        "max_record_megabytes": data.max_record_megabytes,
    }
    if data.prompt is not None:
        tree["prompt"] = _prompt(spec, lists)
    return _hashed(tree)


def _source(spec: RunSpec) -> dict[str, Any]:
    """The source wherever it lies. What prompts are made of is left out where there are none, so that a set without
    them keeps the key that it had before there were any."""
    source: dict[str, Any] = spec.data.source.model_dump(mode="json", exclude={"path"})
    return {key: value for key, value in source.items() if value is not None or key not in PROMPT_KEYS}


def _prompt(spec: RunSpec, lists: Lists) -> dict[str, Any]:
    """What a prompt is, and how it is cleaned: as texts are, whatever the modality."""
    assert spec.data.prompt is not None
    return spec.data.prompt.model_dump(mode="json") | {"cleaning": _cleaning(spec, "text", lists)}


def _cleaning(spec: RunSpec, modality: Modality, lists: Lists) -> dict[str, Any]:
    """The steps of the modality, with what a list holds in place of where it lies."""
    steps: dict[str, Any] = getattr(spec.data.cleaning, modality).model_dump(mode="json")
    return steps | {"block_list": lists.block_list.digest} if modality == "text" else steps


def _hashed(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
