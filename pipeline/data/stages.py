"""The steps of preparing that run in parallel: read a unit, count symbols, encode a part, cut a shard.

Pure functions of work items, called in Ray Data's workers. What they make goes to the storage, and only its summary
back to the driver, so that memory is bounded by the workers and a block of each, not by the corpus.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.cleaning import Cleaned, Lists, make_cleaner
from pipeline.data.codec import Codec, codec_from_state
from pipeline.data.duplicates import sign_batch
from pipeline.data.layout import Layout
from pipeline.data.manifest import SPLITS
from pipeline.data.parts import Part, Row, joined, read_rows, write_coded, write_part
from pipeline.data.prompts import prompt_of
from pipeline.data.records import Record
from pipeline.data.shards import shard_table, write_shard
from pipeline.data.splits import split_text
from pipeline.errors import CodecError
from pipeline.spec import DataSpec
from pipeline.storage import Store

COUNTED = ("tokens", "characters", "utf8_bytes", "unknown")
OPT_OUT = "opt-out"
RAW = "raw"
FACTS = ("encoding", "format", "mode", "rate_hz", "channels")
"""Of what a codec tells of a file, that which few values describe; the data card counts them."""


@dataclass
class ReadStage:
    """Units → parts: read, open, clean, shape, sign, and encode where the codec has nothing to learn."""

    corpus: Any
    codec_state: dict[str, Any]
    data: DataSpec
    lists: Lists
    store: Store

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """`unit` (JSON) and its `bytes` → the same bytes, the name of the `part` and how many `rows` it has."""
        self.codec = codec_from_state(self.codec_state)
        self.cleaner = make_cleaner(self.data.cleaning, self.codec.modality, self.lists)
        unit = json.loads(item["unit"])
        places = {name: place for place, (name, _) in enumerate(unit["files"])}
        # Several files are read, then decoded: decoding ran a sixth slower with the system's calls in between.
        records = (record for chunk in _chunks(self.corpus.read(unit), 16) for record in chunk)
        rows = (row for record in records for row in self._rows(record, places))
        part = write_part(self.store, unit, self._finished(rows))
        return {"bytes": item["bytes"], "part": part.name, "rows": part.num_rows}

    def _rows(self, record: Record, places: dict[str, int]) -> Iterator[Row]:
        group = record["group"]
        row: Row = {
            "file": places[record["name"]],
            "index": record["index"],
            "piece": 0,
            "record": int(record["id"], 16),
            "bytes_id": int(record["facts"].get("sha256", "0")[:16], 16),
            "group": 0 if group is None else _hash64(group.encode(errors="surrogateescape")),
            "given": -1 if record["split"] is None else SPLITS.index(record["split"]),
            "origin": record["origin"],
            "label": record["label"],
            "error": record["error"],
        }
        if self.lists.opt_out.has(record["id"], record["facts"].get("sha256", ""), record["origin"]):
            yield {**row, "label": None, "error": None, "dropped": OPT_OUT}
            return
        if record["error"] is not None:
            yield row
            return
        try:
            opened = self.codec.open(record["payload"], record["rate"], self.data.max_record_megabytes * 2**20)
        except CodecError as error:
            yield {**row, "error": str(error)}
            return
        facts = {**record["facts"], **opened.facts}
        row["width"], row["height"] = facts.get("width"), facts.get("height")
        row["facts"] = _as_json(tuple((key, facts[key]) for key in FACTS if key in facts))
        cleaned = self.cleaner(opened.raw, facts)
        row["length"] = None if self.codec.modality == "image" else len(cleaned.raw)
        if cleaned.dropped is None:
            cleaned = self._with_prompt(row, record, cleaned)
        row["changed"] = "+".join(cleaned.changed) or None
        row["personal"] = json.dumps(cleaned.personal, sort_keys=True) if cleaned.personal else None
        if cleaned.dropped is not None:
            out = {"content": _hash64(cleaned.raw.encode("utf-8")), "label": None} if cleaned.dropped == OPT_OUT else {}
            yield {**row, "prompt": None, "dropped": cleaned.dropped, "detail": cleaned.detail, **out}
            return
        try:
            yield from self._pieces(row, cleaned.raw, record)
        except CodecError as error:
            yield {**row, "error": str(error)}

    def _with_prompt(self, row: Row, record: Record, cleaned: Cleaned) -> Cleaned:
        """Put the record's prompt, cleaned, into its row; what became of the record with it."""
        text = None if self.data.prompt is None else prompt_of(record, self.data.prompt)
        if text is None:
            return cleaned
        prompt = self.cleaner.clean_prompt(text)
        row["prompt"] = prompt.raw
        return replace(
            cleaned,
            dropped=prompt.dropped,
            detail=None if prompt.dropped is None else f"in its prompt: {prompt.detail}",
            changed=tuple(dict.fromkeys([*cleaned.changed, *prompt.changed])),
            personal=dict(Counter(cleaned.personal) + Counter(prompt.personal)),
        )

    def _pieces(self, row: Row, raw: Any, record: Record) -> Iterator[Row]:
        # Of a text that is as the corpus has it, the record's id is the hash of what is left of it too.
        payload = record["payload"] if isinstance(raw, str) else None
        if self.data.split.kind == "position":
            parts = split_text(raw, self.data.split)
            pieces = [(SPLITS.index(split), part) for split, part in parts.items() if part]
        else:
            pieces = [(row["given"], piece) for piece in self.codec.shape(raw, record["id"])]
        if not pieces:
            yield {**row, "dropped": "silence", "detail": "nothing is left after trimming"}
        for number, (given, piece) in enumerate(pieces):
            data = piece.encode("utf-8") if isinstance(piece, str) else piece.tobytes()
            content = row["record"] if piece is payload else _hash64(data)
            length = None if self.codec.modality == "image" else len(piece)
            made = {"piece": number, "given": given, "content": content, "length": length, "data": data, RAW: piece}
            yield {**row, **made}

    def _finished(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rows with the signature of what is under RAW and, where the codec has nothing to learn, its example: many at
        a time, which is faster."""
        rate = self.codec.layout().sample_rate_hz
        for chunk in _chunks(rows, 256):
            made = [row for row in chunk if RAW in row]
            raws = [row.pop(RAW) for row in made]
            if self.data.duplicates.near != "off":
                for row, signature in zip(made, sign_batch(raws, self.codec.modality, rate), strict=True):
                    row["signature"] = signature
            if not self.codec.needs_fit:
                for row, example in zip(made, coded(self.codec, raws), strict=True):
                    row |= example
            yield from chunk


def coded(codec: Codec, raws: Sequence[Any]) -> Iterator[Row]:
    """The CODED_SCHEMA columns of each of some raw records."""
    layout = codec.layout()
    for raw, example in zip(raws, codec.encode_batch(raws), strict=True):
        row: Row = {"data": example.tobytes(), "tokens": example.size, "unknown": codec.count_unknown(raw)}
        if isinstance(raw, str):
            # A document that was cut has no end token, and its example covers less than the whole.
            whole = layout.continuous or layout.end_token in example
            covered = raw if whole else codec.decode(example)
            row |= {"characters": len(covered), "utf8_bytes": len(covered.encode())}
        yield row


@dataclass
class CountStage:
    """Parts → how often each character (or word) is in the chosen rows: what such a codec learns."""

    codec_state: dict[str, Any]
    parts: Sequence[Part]

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """`part` (its place), `rows` (int32 bytes) → `counts` (JSON)."""
        codec: Any = codec_from_state(self.codec_state)
        texts = part_texts(self.parts[item["part"]], np.frombuffer(item["rows"], np.int32))
        return {"counts": json.dumps(codec.count(texts))}


@dataclass
class EncodeStage:
    """Parts with raw records → files of the same rows encoded, null where they are not kept."""

    codec_state: dict[str, Any]
    parts: Sequence[Part]
    store: Store

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """`part` (its place), `rows` (int32 bytes: those kept, ascending) → `part` and COUNTED of those rows, each as
        int64 bytes."""
        part, kept = self.parts[item["part"]], np.frombuffer(item["rows"], np.int32)
        made: list[Row] = []
        write_coded(self.store, part.name, self._aligned(part, kept, made))
        columns = {name: np.array([row.get(name) or 0 for row in made], np.int64).tobytes() for name in COUNTED}
        return {"part": item["part"], **columns}

    def _aligned(self, part: Part, kept: np.ndarray, made: list[Row]) -> Iterator[Row]:
        """A row for each of the part's, empty where it is not kept; what was counted of the others goes to `made`."""
        done = 0
        for number, row in zip(kept.tolist(), self._encoded(part_texts(part, kept)), strict=True):
            made.append({name: row.get(name) for name in COUNTED})
            yield from ({} for _ in range(number - done))
            yield row
            done = number + 1
        yield from ({} for _ in range(part.num_rows - done))

    def _encoded(self, texts: Iterable[str]) -> Iterator[Row]:
        codec = codec_from_state(self.codec_state)
        for chunk in _chunks(texts, 512):
            yield from coded(codec, chunk)


def part_texts(part: Part, rows: np.ndarray) -> Iterator[str]:
    """The texts of some rows of a part, holding few at a time."""
    for start in range(0, len(rows), 2048):
        column = part.rows(rows[start : start + 2048], ["data"])["data"]
        yield from (value.as_py().decode("utf-8") for value in column)


@dataclass
class CutStage:
    """Shard plans → shards: gathers the examples of one shard from the parts, in order, and writes them."""

    parts: Sequence[Part]
    coded: Store | None  # where EncodeStage wrote; None where the parts themselves hold examples
    store: Store
    layout: Layout

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """`split`, `number`, `part` and `row` (int32 bytes, in order); for continuous text `skip` (tokens of the first
        row before the shard), `first` (number of its first window), `windows` (how many; -1 for examples) and `tail`
        (tokens to keep after them) → `shard`, `labels`, `prompts` and `tail` (JSON)."""
        part, row = np.frombuffer(item["part"], np.int32), np.frombuffer(item["row"], np.int32)
        table = self._gathered(part, row)
        dtype = np.dtype(self.layout.stored_dtype)
        stored = joined(table["data"]).view(dtype)
        tail: list[int] = []
        labels: Counter[str] = Counter()
        prompts = table["prompt"] if self.layout.prompt_length else None
        if item["windows"] < 0:
            x = stored.reshape(-1, *self.layout.shape)
            ids, origins, label = _identifiers(table), table["origin"], table["label"]
            labels.update(pc.drop_null(label).to_pylist())
        else:
            count, length = item["windows"], self.layout.length
            stream = stored[item["skip"] :]
            x = stream[: count * length].reshape(count, length)
            tail = stream[count * length : count * length + item["tail"]].tolist()
            ids = _numbered(f"{item['split']}-", item["first"], count)
            begins = np.concatenate([[0], np.cumsum(table["tokens"].to_numpy())]) - item["skip"]
            which = np.searchsorted(begins, np.arange(count) * length, side="right") - 1
            origins, label = table["origin"].take(pa.array(which)), pa.nulls(count, pa.string())
        shard = None
        if len(x):
            examples = shard_table(self.layout, x, ids, origins, label, prompts)
            shard = write_shard(self.store, item["split"], item["number"], self.layout, examples)
        return {
            "split": item["split"],
            "number": item["number"],
            "shard": json.dumps(shard),
            "labels": json.dumps(labels),
            "prompts": json.dumps({} if prompts is None else Counter(pc.drop_null(prompts).to_pylist())),
            "tail": json.dumps(tail),
        }

    def _gathered(self, part: np.ndarray, row: np.ndarray) -> pa.Table:
        """The rows in the order given, with their examples."""
        about = ["record", "piece", "origin", "label"] + ["prompt"] * bool(self.layout.prompt_length)
        held = ["tokens", "data"]
        tables, places = [], []
        for each in np.unique(part):
            where = np.flatnonzero(part == each)
            where = where[np.argsort(row[where], kind="stable")]
            source, numbers = self.parts[each], row[where]
            if self.coded is None:
                tables.append(source.rows(numbers, about + held))
            else:
                table = source.rows(numbers, about)
                examples = read_rows(self.coded, source.name, numbers, held)
                for name in held:
                    table = table.append_column(name, examples[name])
                tables.append(table)
            places.append(where)
        order = np.empty(len(part), np.int64)
        order[np.concatenate(places)] = np.arange(len(part))
        table = pa.concat_tables(tables)
        return table if _is_ascending(order) else table.take(pa.array(order))


def _is_ascending(order: np.ndarray) -> bool:
    return bool((order == np.arange(len(order))).all())


def _identifiers(table: pa.Table) -> pa.Array:
    """An example's id: its record's, with its place in the record where that gives several."""
    pairs = zip(table["record"].to_pylist(), table["piece"].to_pylist(), strict=True)
    return pa.array([f"{record:016x}" if piece == 0 else f"{record:016x}.{piece}" for record, piece in pairs])


def _numbered(prefix: str, first: int, count: int) -> pa.Array:
    """`prefix` and nine digits for each of `count` numbers from `first` on; as formatted strings they took a tenth of
    the time of cutting a text."""
    if first + count > 10**9:
        return pa.array([f"{prefix}{number:09d}" for number in range(first, first + count)], pa.string())
    digits = np.arange(first, first + count)[:, None] // 10 ** np.arange(8, -1, -1) % 10 + ord("0")
    begin = np.broadcast_to(np.frombuffer(prefix.encode(), np.uint8), (count, len(prefix)))
    values = np.concatenate([begin, digits.astype(np.uint8)], axis=1)
    offsets = np.arange(count + 1, dtype=np.int32) * values.shape[1]
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(values)])


@lru_cache(maxsize=4096)
def _as_json(facts: tuple[tuple[str, Any], ...]) -> str:
    return json.dumps(dict(facts), sort_keys=True)


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _chunks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
