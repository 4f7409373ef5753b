"""Prepare: from a spec's corpus to an immutable set of shards, by Ray Data. [ray]

The driver opens the corpus, lets Ray Data read, decode and encode it in parallel, and writes the encoded blocks in
the corpus's order as they arrive. What is written is complete or not there at all. Assumes that Ray is initialised.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.exceptions import RayError

from pipeline.data.codec import Codec, make_codec
from pipeline.data.collect import Collector
from pipeline.data.corpus import open_corpus
from pipeline.data.manifest import FOLDER, FORMAT_VERSION, MANIFEST, Manifest, prepared_key
from pipeline.data.prepared import Prepared, find_prepared
from pipeline.data.records import Corpus, Unit
from pipeline.data.stages import EncodeStage, ReadStage
from pipeline.errors import AtelierError
from pipeline.progress import Progress, silent
from pipeline.spec import RunSpec
from pipeline.storage import Store

BLOCK_BYTES = 32 * 2**20


def prepare(spec: RunSpec, store: Store, progress: Progress = silent) -> Prepared:
    """The prepared set of `spec` in `store`: found if it is there and whole, else made.

    Raises: CorpusError, CodecError, StorageError; nothing is left behind then.
    """
    started = time.monotonic()
    codec = make_codec(spec.data.codec)
    progress("prepare", 0, None, "reading the corpus's fingerprint")
    corpus = open_corpus(spec.data.source, codec.modality)
    key = prepared_key(spec, corpus)
    found = find_prepared(store, key)
    if found is not None and not found.missing_shards():
        progress("prepare", found.manifest.report["kept"], found.manifest.report["kept"], f"found {key}")
        return found
    codec = make_codec(spec.data.codec, corpus.single_document)
    units = corpus.units(spec.data.limit)
    # An object store cannot rename: there the manifest, written last, is what makes the set complete.
    folder = store.child(FOLDER, f".tmp-{key}-{uuid.uuid4().hex[:8]}" if store.is_local else key)
    if not store.is_local:
        folder.delete_dir()
    folder.make_dir()
    try:
        collector = _run(spec, corpus, codec, units, folder, progress)
        splits, report = collector.finish()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            key=key,
            corpus={
                "fingerprint": corpus.fingerprint(),
                "licence": corpus.licence,
                "source": spec.data.source.model_dump(mode="json"),
                "records": collector.records().save(folder),
            },
            split=spec.data.split.model_dump(mode="json"),
            codec=codec.state(),
            layout=codec.layout(collector.labels()).as_dict(),
            splits=splits,
            report={**report, "seconds": round(time.monotonic() - started, 3)},
        )
        folder.write_json(manifest.as_dict(), MANIFEST)
        if store.is_local:
            _publish(store, folder, key)
    except BaseException:  # also when interrupted: nothing half-written stays
        folder.delete_dir()
        raise
    progress("prepare", collector.read, collector.read, f"wrote {key}")
    return Prepared(store.child(FOLDER, key), Manifest.from_dict(store.read_json(FOLDER, key, MANIFEST)))


def _run(
    spec: RunSpec, corpus: Corpus, codec: Codec, units: list[Unit], folder: Store, progress: Progress
) -> Collector:
    """Read, fit, encode and collect all units."""
    total = sum(unit["count"] for unit in units) if all("count" in unit for unit in units) else None
    total = min(total, spec.data.limit) if total and spec.data.limit else total
    items = [{"unit": json.dumps(unit)} for unit in units]
    records = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ReadStage(corpus, codec.state(), spec.data.split), batch_size=1, batch_format="pyarrow"
    )
    _configure(records)
    try:
        if codec.needs_fit:
            progress("prepare", 0, total, "reading")
            records = records.materialize()
            progress("prepare", 0, total, "fitting the codec")
            _fit(codec, records, spec, folder)
        encoded = records.map_batches(
            EncodeStage(codec.state()), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
        )
        _configure(encoded)
        collector = Collector(folder, codec.layout(), spec)
        for table in encoded.iter_batches(batch_size=None, batch_format="pyarrow"):
            collector.add(table)
            progress("prepare", collector.read, total, "encoding")
    except RayError as error:
        raise _own_error(error) or error from None
    return collector


def _configure(dataset: ray.data.Dataset) -> None:
    """Blocks in the corpus's order and of a moderate size; our own progress instead of Ray Data's."""
    context = dataset.context
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off


def _fit(codec: Codec, records: ray.data.MaterializedDataset, spec: RunSpec, folder: Store) -> None:
    """Fit the codec on the training texts, once it is known that enough of the corpus can be decoded."""
    blocks = records.to_arrow_refs()

    def tables() -> Iterator[pa.Table]:
        return (ray.get(block) for block in blocks)

    failures = Collector(folder, codec.layout(), spec)
    for table in tables():
        failures.read += table.num_rows
        failures.note_failures(table)
    failures.check_quarantine()
    texts = (
        text.decode("utf-8")
        for table in tables()
        for text in table.filter(pc.equal(table["split"], "train"))["raw"].to_pylist()
    )
    codec.fit(texts)


def _publish(store: Store, folder: Store, key: str) -> None:
    """Give the finished folder its name, unless another process has finished the same set meanwhile."""
    found = find_prepared(store, key)
    if found is not None and not found.missing_shards():
        folder.delete_dir()
        return
    target = store.child(FOLDER, key)
    target.delete_dir()
    folder.local_path().rename(target.local_path())


def _own_error(error: BaseException) -> AtelierError | None:
    """The AtelierError that a worker raised, from within what Ray wraps it in."""
    seen: Any = error
    while seen is not None:
        if isinstance(seen, AtelierError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
