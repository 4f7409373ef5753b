"""One preparation under way: read, select, fit, encode, cut; from a corpus to shards and their manifest.

On the driver, which spreads each step over Ray Data's workers and keeps none of the records itself.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.data import near
from pipeline.data.card import describe, values_of
from pipeline.data.catalogue import Catalogue
from pipeline.data.characters import CharactersCodec
from pipeline.data.cleaning import Lists
from pipeline.data.codec import Codec
from pipeline.data.cuts import plan_shards
from pipeline.data.layout import Layout
from pipeline.data.manifest import FORMAT_VERSION, SPLITS, Manifest, reading_key
from pipeline.data.parts import PARTS_FOLDER, Part, forget
from pipeline.data.prepared import Records
from pipeline.data.prompts import PROMPTS_KEPT, is_cut
from pipeline.data.records import Corpus
from pipeline.data.selection import Rows, Selection, load_rows, put_numbers, select, stale_parts
from pipeline.data.shards import rows_per_shard
from pipeline.data.spread import spread
from pipeline.data.stages import COUNTED, CountStage, CutStage, EncodeStage, ReadStage, part_texts
from pipeline.data.words import WordsCodec
from pipeline.errors import CorpusError
from pipeline.progress import Progress
from pipeline.spec import RunSpec
from pipeline.storage import Store

INLINE_THREADS = 2
INLINE_ROWS = 60_000
"""Up to so many rows, near duplicates are sought and characters counted in the driver: Ray tasks would take longer."""


@dataclass
class Preparation:
    """From a corpus to `folder`, which becomes the set; what only the preparation needs goes to `work`."""

    spec: RunSpec
    store: Store
    corpus: Corpus
    codec: Codec
    lists: Lists
    folder: Store
    work: Store
    progress: Progress
    parts: list[Part] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    files_read: int = 0

    def run(self, key: str) -> Manifest:
        """Read, select, fit, encode, cut; the manifest of what was written."""
        data = self.spec.data
        rows = self._timed("read", self._read)
        self._check_quarantine(rows)
        pairs = self._timed("near duplicates", lambda: self._near_pairs(rows))
        selection = select(rows, pairs, data, self._origin_of(rows))
        if self.codec.needs_fit:
            self._timed("fit", lambda: self._fit(selection))
            self._timed("encode", lambda: self._encode(selection))
        layout, splits = self._timed("cut", lambda: self._cut(selection))
        records = Records.of_sides(rows.record, selection.side)
        report = describe(self.parts, selection, self.codec.modality)
        return Manifest(
            format_version=FORMAT_VERSION,
            key=key,
            corpus={
                "fingerprint": self.corpus.fingerprint(),
                "licence": self.corpus.licence,
                "source": data.source.model_dump(mode="json"),
                **({} if data.prompt is None else {"prompt": data.prompt.model_dump(mode="json")}),
                "records": records.save(self.folder),
            },
            cleaning=data.cleaning.model_dump(mode="json"),
            duplicates=data.duplicates.model_dump(mode="json"),
            split=data.split.model_dump(mode="json"),
            codec=self.codec.state(),
            layout=layout.as_dict(),
            splits=splits,
            report=report,
        )

    def facts(self) -> dict[str, Any]:
        """What another preparation of the same set would not share."""
        return {
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "parts": len(self.parts),
            "files_read": self.files_read,
        }

    # --- reading ----------------------------------------------------------------------------------------------

    def _read(self) -> Rows:
        """Read what no part holds, and the small columns of all."""
        self.progress("prepare", 0, None, "looking for what was read before")
        there = self.store.child(PARTS_FOLDER, reading_key(self.spec, self.corpus, self.codec, self.lists))
        there.make_dir()
        there.sweep()
        catalogue = Catalogue(there, self.corpus, self.spec.data.limit)
        self._read_missing(catalogue)
        self.parts = catalogue.parts()
        stale = stale_parts(self.parts, self.lists.opt_out)
        for part in stale:
            forget(part)
        if stale:
            self._read_missing(catalogue)
            self.parts = catalogue.parts()
        return load_rows(self.parts, catalogue.ranks(self.parts))

    def _read_missing(self, catalogue: Catalogue) -> None:
        units = catalogue.missing()
        stage = ReadStage(self.corpus, self.codec.state(), self.spec.data, self.lists, catalogue.store)
        total, done = sum(unit["bytes"] for unit in units) // 2**20, 0
        items = [{"unit": json.dumps(unit), "bytes": unit["bytes"]} for unit in units]
        for answer in spread(items, stage):
            catalogue.add(answer["part"], answer["rows"])
            done += answer["bytes"]
            self.progress("prepare", done // 2**20, total, "reading, MB")
        self.files_read += len({name for unit in units for name, _ in unit["files"]})

    def _check_quarantine(self, rows: Rows) -> None:
        """Raises: CorpusError when nothing was read, or more than the spec's share of it cannot be decoded."""
        source, allowed = self.spec.data.source, self.spec.data.max_quarantined
        where = getattr(source, "path", getattr(source, "name", ""))
        count = int(rows.first_pieces.sum())
        if count == 0:
            raise CorpusError(f"{where}: there are no records in it; set data.source")
        failed = np.flatnonzero(rows.failed)
        if len(failed) > allowed * count:
            told = values_of(self.parts, rows, failed[:3], "origin", "error")
            reasons = "".join(f"\n  {origin}: {error}" for origin, error in told)
            raise CorpusError(
                f"{where}: {len(failed):,} of {count:,} records cannot be decoded, and data.max_quarantined "
                f"allows {allowed:.3g} of them; mend or remove them, or raise it:{reasons}"
            )

    def _origin_of(self, rows: Rows) -> Callable[[int], str]:
        alive = np.flatnonzero(rows.alive)
        return lambda place: str(values_of(self.parts, rows, alive[place : place + 1], "origin")[0][0])

    # --- deciding ---------------------------------------------------------------------------------------------

    def _near_pairs(self, rows: Rows) -> np.ndarray:
        """Pairs int64 `[P, 2]` of near duplicates among the rows."""
        if self.spec.data.duplicates.near == "off":
            return np.zeros((0, 2), np.int64)
        alive = np.flatnonzero(rows.alive)
        _, first = np.unique(rows.content[alive], return_index=True)  # exact duplicates are joined without a search
        chosen = alive[np.sort(first)]
        if not len(chosen):
            return np.zeros((0, 2), np.int64)
        near.save_signatures(self.work, self.parts, rows, chosen, self.codec.modality)
        stage = near.PairStage(self.work, len(chosen), self.codec.modality, self.spec.data.duplicates.similarity)
        items, found = near.bands(self.codec.modality), [np.zeros((0, 2), np.int64)]
        if len(chosen) <= INLINE_ROWS:
            with ThreadPoolExecutor(INLINE_THREADS) as threads:
                found += [_pairs(answer) for answer in threads.map(stage, items)]
        else:
            for answer in spread(items, stage):
                found.append(_pairs(answer))
                self.progress("prepare", len(found) - 1, len(items), "looking for near duplicates")
        return chosen[np.unique(np.concatenate(found), axis=0)]

    # --- fitting, encoding, cutting ---------------------------------------------------------------------------

    def _fit(self, selection: Selection) -> None:
        """Fit the codec on the training texts, or where it says so on an evenly spaced sample of them."""
        self.progress("prepare", 0, None, "fitting the codec")
        chosen, codec = selection.chosen("train"), self.codec
        limit = getattr(codec.spec, "fit_megabytes", None)
        if limit is None:
            items = self._items(selection.rows, chosen)
            stage = CountStage(codec.state(), self.parts)
            counts: Counter[str] = Counter()
            answers = spread(items, stage) if len(chosen) > INLINE_ROWS else map(stage, items)
            for answer in answers:
                counts.update(json.loads(answer["counts"]))
            assert isinstance(codec, CharactersCodec | WordsCodec), "the codecs that are fitted on counts"
            codec.fit_counts(counts)
            return
        total = int(selection.rows.numbers["length"][chosen].sum())
        share = max(1.0, total / (limit * 2**20))
        sample = chosen[np.unique((np.arange(int(len(chosen) / share)) * share).astype(np.int64))]
        texts = (
            text
            for item in self._items(selection.rows, sample)
            for text in part_texts(self.parts[item["part"]], np.frombuffer(item["rows"], np.int32))
        )
        codec.fit(texts)

    def _items(self, rows: Rows, chosen: np.ndarray) -> list[dict[str, Any]]:
        """An item a part: which of its rows are chosen, ascending. Parts come in the order of the corpus."""
        part = rows.part[chosen]
        places, first = np.unique(part, return_index=True)
        return [
            {"part": int(place), "rows": np.sort(rows.row[chosen[part == place]]).astype(np.int32).tobytes()}
            for place in places[np.argsort(first)]
        ]

    def _encode(self, selection: Selection) -> None:
        rows = selection.rows
        kept = np.flatnonzero(selection.side < len(SPLITS))
        items = self._items(rows, kept)
        done = 0
        for answer in spread(items, EncodeStage(self.codec.state(), self.parts, self.work)):
            mine = kept[rows.part[kept] == answer["part"]]
            mine = mine[np.argsort(rows.row[mine], kind="stable")]
            for name in COUNTED:
                put_numbers(rows.numbers, name, mine, np.frombuffer(answer[name], np.int64))
            done += len(mine)
            self.progress("prepare", done, len(kept), "encoding")

    def _cut(self, selection: Selection) -> tuple[Layout, dict[str, dict[str, Any]]]:
        """Write the shards; the layout with the training split's labels and prompts, and the manifest's entries."""
        data = self.spec.data
        layout = self.codec.layout()
        if data.prompt is not None and not layout.continuous:
            layout = replace(layout, prompt_length=data.prompt.length)
        self.folder.make_dir()
        size = rows_per_shard(layout, data.shard_megabytes)
        items = [item for split in SPLITS for item in plan_shards(selection, split, layout, size)]
        coded = self.work if self.codec.needs_fit else None
        answers: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        stage = CutStage(self.parts, coded, self.folder, layout)
        for done, answer in enumerate(spread(items, stage), start=1):
            answers[answer["split"]].append(answer)
            self.progress("prepare", done, len(items), "writing shards")
        prompts = {split: _counted(answers[split], "prompts") for split in SPLITS}
        entries = {split: self._entry(selection, split, answers[split], prompts[split]) for split in SPLITS}
        for name in dict.fromkeys(("train", self.spec.evaluation.split)):
            self._check_filled(name, entries[name], selection)
        labels = entries["train"]["labels"]
        commonest = sorted(prompts["train"].items(), key=lambda one: (-one[1], one[0]))[:PROMPTS_KEPT]
        layout = replace(
            layout,
            labels=tuple(labels),
            label_counts=tuple(labels.values()),
            prompts=tuple(text for text, _ in commonest),
            prompt_counts=tuple(count for _, count in commonest),
        )
        return layout, entries

    def _entry(
        self, selection: Selection, split: str, answers: list[dict[str, Any]], prompts: Counter[str]
    ) -> dict[str, Any]:
        answers.sort(key=lambda answer: answer["number"])
        chosen, numbers = selection.chosen(split), selection.rows.numbers
        length = 0 if self.spec.data.prompt is None else self.spec.data.prompt.length
        told = {
            "given": prompts.total(),
            "distinct": len(prompts),
            "cut": sum(count for text, count in prompts.items() if is_cut(text, length)),
        }
        shards = [shard for answer in answers if (shard := json.loads(answer["shard"])) is not None]
        return {
            "shards": shards,
            "rows": sum(shard["rows"] for shard in shards),
            "records": len(chosen),
            "characters": int(numbers["characters"][chosen].sum()),
            "utf8_bytes": int(numbers["utf8_bytes"][chosen].sum()),
            "tail_tokens": json.loads(answers[-1]["tail"]) if answers else [],
            "labels": dict(sorted(_counted(answers, "labels").items())),
            **({"prompts": told} if length else {}),
        }

    def _check_filled(self, name: str, entry: dict[str, Any], selection: Selection) -> None:
        if entry["rows"]:
            return
        tokens = len(entry["tail_tokens"])
        if tokens:
            raise CorpusError(
                f"the {name} split has {tokens:,} tokens, fewer than one window of data.codec.length "
                f"{self.codec.layout().length}; shorten it, or bring more text"
            )
        kept = int((selection.side < len(SPLITS)).sum())
        raise CorpusError(
            f"the {name} split is empty: {kept:,} records were kept of {len(selection.rows):,} read; change data.split "
            f"(now {self.spec.data.split.model_dump()}), data.limit or evaluation.split, or bring more records"
        )

    def _timed(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.monotonic()
        value = call()
        self.seconds[name] = time.monotonic() - start
        return value


def _counted(answers: list[dict[str, Any]], name: str) -> Counter[str]:
    """The counts that the shards of a split give under `name`, added up."""
    counts: Counter[str] = Counter()
    for answer in answers:
        counts.update(json.loads(answer[name]))
    return counts


def _pairs(answer: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(answer["pairs"], np.int64).reshape(-1, 2)
