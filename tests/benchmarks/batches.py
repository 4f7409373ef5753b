"""What streaming a prepared set costs: against the same set in memory, against PyTorch's DataLoader, in memory used.

    python -m tests.benchmarks.batches [--slices 15] [--slice-seconds 2] [--data FOLDER]

Sets of 300,000 pictures and 30 MB of text are written with the shard writer. (a) Training with `conf/image_vae.yaml`
and `conf/text_rnn.yaml`, by the real session in a process of its own, streamed and in memory: both run at once and
take turns, all threads of the other stopped, so that both see the same machine within seconds. (b) Rows a second with
no model: streamed, and by DataLoaders of two workers that read the same Parquet, by turns. (c) The share of its time
that a streamed training waits for data, by its own metric. (d) The memory that streaming takes, over growing sets.
Ratios count: absolute numbers are this machine's, now. Training has one thread unless `--threads` says otherwise: on
a machine that others use too, threads that wait for each other at every operation measure the neighbours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from pipeline.data.codec import Codec, make_codec
from pipeline.data.feed import make_batches
from pipeline.data.manifest import FOLDER, FORMAT_VERSION, MANIFEST, Manifest
from pipeline.data.prepared import Prepared, open_prepared
from pipeline.data.shards import ShardWriter, rows_per_shard
from pipeline.spec import RunSpec, load_spec
from pipeline.storage import Store, open_store
from pipeline.training.checkpoint import Position
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from tests.conftest import SHARED_DATA

BATCH = 128
SHUFFLE_BUFFER = 8192
SETTLED_STEPS = 50


# --- the sets -------------------------------------------------------------------------------------------------


def write_set(store: Store, key: str, codec: Codec, blocks: Iterator[np.ndarray]) -> None:
    """A training split of the blocks' examples, under `key`."""
    layout = codec.layout()
    folder = store.child(FOLDER, key)
    writer = ShardWriter(folder, "train", layout, rows_per_shard(layout, 16))
    for block in blocks:
        names = pa.array([f"{i:016x}" for i in range(writer.rows, writer.rows + len(block))])
        writer.write(block, names, names, pa.nulls(len(block), pa.string()))
    splits: dict[str, dict[str, Any]] = {"train": {"shards": writer.close(), "rows": writer.rows, "tail_tokens": []}}
    manifest = Manifest(FORMAT_VERSION, key, {}, {}, {}, {}, codec.state(), layout.as_dict(), splits, {})
    folder.write_json(manifest.as_dict(), MANIFEST)


def write_pictures(store: Store, key: str, spec: RunSpec, data: Path, count: int) -> None:
    digits = np.asarray(np.load(data / "image" / "mnist.npz")["x_train"]).reshape(-1, 1, 28, 28)
    rows = range(0, count, 20_000)
    blocks = (digits[np.arange(start, min(start + 20_000, count)) % len(digits)] for start in rows)
    write_set(store, key, make_codec(spec.data.codec), blocks)


def write_text(store: Store, key: str, spec: RunSpec, data: Path, megabytes: int) -> None:
    text = (data / "text" / "tinyshakespeare.txt").read_text()
    codec = make_codec(spec.data.codec, single_document=True)
    codec.fit([text])
    stream, length = codec.encode(text), codec.layout().length
    windows = stream[: len(stream) // length * length].reshape(-1, length)
    times = -(-megabytes * 10**6 // windows.nbytes)
    write_set(store, key, codec, itertools.repeat(windows, times))


def spec_of(conf: str, load: str, **training: Any) -> RunSpec:
    """The conf as it is, but with no end and no schedule."""
    tree = load_spec(f"conf/{conf}.yaml", []).as_dict()
    forever = {"steps": 10**8, "max_seconds": None, "schedule": "constant", "checkpoint_every": 10**8}
    tree["training"] |= forever | {"load": load} | training
    return RunSpec.model_validate(tree)


# --- (a) training, by turns -----------------------------------------------------------------------------------


def train(storage: str, key: str, conf: str, load: str, threads: int, steps: Any, settled: Any) -> None:
    """Train for ever, in a process of its own; `steps` counts, and the event `settled` comes after the first."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # as the workers do
    spec = spec_of(conf, load)
    session = Session(spec, open_prepared(open_store(storage), key))
    take = session.stepper.step

    def step(*arguments: Any) -> Any:
        means = take(*arguments)
        steps.value += 1
        if steps.value == SETTLED_STEPS:
            settled.set()
        return means

    with mock.patch.object(session.stepper, "step", step):
        session.run(LocalHooks(spec))


def compare_training(
    storage: str, key: str, conf: str, threads: int, slices: int, slice_seconds: float
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    loads = ("stream", "memory")
    steps = {load: context.Value("q", 0, lock=False) for load in loads}
    settled = {load: context.Event() for load in loads}
    processes = {
        load: context.Process(target=train, args=(storage, key, conf, load, threads, steps[load], settled[load]))
        for load in loads
    }
    taken, spent = dict.fromkeys(loads, 0), dict.fromkeys(loads, 0.0)
    ratios = []
    try:
        for load, process in processes.items():
            process.start()
            while not settled[load].wait(1.0):
                assert process.is_alive(), "the training ended; its traceback is above"
            os.kill(process.pid or 0, signal.SIGSTOP)
        for turn in range(slices):
            rate = {}
            for load in loads if turn % 2 else reversed(loads):
                before, start = steps[load].value, time.perf_counter()
                os.kill(processes[load].pid or 0, signal.SIGCONT)
                time.sleep(slice_seconds)  # the turn itself
                os.kill(processes[load].pid or 0, signal.SIGSTOP)
                count, seconds = steps[load].value - before, time.perf_counter() - start
                taken[load] += count
                spent[load] += seconds
                rate[load] = count / seconds
            if rate["memory"]:
                ratios.append(rate["stream"] / rate["memory"])
    finally:
        for process in processes.values():
            process.kill()
            process.join()
    rates = {load: taken[load] / spent[load] for load in loads}
    return {
        "training": conf,
        "streamed_steps_per_second": round(rates["stream"], 2),
        "in_memory_steps_per_second": round(rates["memory"], 2),
        "ratio": round(rates["stream"] / rates["memory"], 3),
        "median_of_paired_ratios": round(float(np.median(ratios)), 3),
    }


# --- (b) no model ---------------------------------------------------------------------------------------------


class Rows(Dataset[np.ndarray]):
    """Map-style, as generous as it gets: each worker holds the whole table, decoded, and gives a row by number."""

    def __init__(self, files: list[str], shape: tuple[int, ...]) -> None:
        self.files, self.shape = files, shape
        self.column: pa.Array | None = None
        self.count = sum(pq.read_metadata(file).num_rows for file in files)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> np.ndarray:
        if self.column is None:
            self.column = (
                pa.concat_tables([pq.read_table(file, columns=["x"]) for file in self.files])
                .combine_chunks()["x"]
                .chunk(0)
            )
        return np.frombuffer(self.column[row].as_buffer(), np.uint8).reshape(self.shape).copy()


class RowGroups(IterableDataset[np.ndarray]):
    """Streaming: row groups in random order, every second one to each of two workers, through a shuffle buffer."""

    def __init__(self, files: list[str], shape: tuple[int, ...]) -> None:
        self.files, self.shape = files, shape
        self.groups = [(file, group) for file in files for group in range(pq.read_metadata(file).num_row_groups)]

    def __iter__(self) -> Iterator[np.ndarray]:
        worker = get_worker_info()
        assert worker is not None
        mine = np.random.default_rng(0).permutation(len(self.groups))[worker.id :: worker.num_workers]
        random = np.random.default_rng(worker.seed)
        buffer: list[np.ndarray] = []
        for number in mine:
            for row in self._read(*self.groups[number]):
                if len(buffer) < SHUFFLE_BUFFER:
                    buffer.append(row)
                    continue
                place = int(random.integers(SHUFFLE_BUFFER))
                yield buffer[place]
                buffer[place] = row
        random.shuffle(buffer)
        yield from buffer

    def _read(self, file: str, group: int) -> np.ndarray:
        with pq.ParquetFile(file) as opened:
            column = opened.read_row_group(group, columns=["x"])["x"].combine_chunks()
        flat = np.frombuffer(column.buffers()[1], np.uint8)
        return flat.reshape(-1, *self.shape)


def compare_loaders(prepared: Prepared, rounds: int, seconds: float) -> list[dict[str, Any]]:
    layout = prepared.layout
    spec = spec_of("image_vae", "stream")
    files = [str(prepared.store.local_path(shard.entry["file"])) for shard in prepared.shards("train")]

    def streamed() -> Iterator[Callable[[], Any]]:
        batches = make_batches(prepared, "train", spec.training, seed=0)
        try:
            for number in itertools.count():
                yield lambda number=number: batches.batch(number).x
        finally:
            batches.close()

    def loader(dataset: Any, shuffle: bool) -> Iterator[Callable[[], Any]]:
        options = {"batch_size": BATCH, "num_workers": 2, "shuffle": shuffle, "drop_last": True}
        while True:
            for batch in DataLoader(dataset, **options):
                yield lambda batch=batch: layout.to_model(batch)

    sources = {
        "streamed": streamed,
        "map-style": lambda: loader(Rows(files, layout.shape), True),
        "iterable": lambda: loader(RowGroups(files, layout.shape), False),
    }
    counts: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name, source in sources.items():
            feed = source()
            for _ in range(100):  # workers started, the table and the shuffle buffer filled
                next(feed)()
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                count += len(next(feed)())
            counts[name].append(count / (time.perf_counter() - start))
            feed.close()
    ours = np.array(counts["streamed"])
    return [
        {
            "no_model": f"streamed against DataLoader, 2 workers, {name}",
            "streamed_rows_per_second": round(float(np.median(ours))),
            "their_rows_per_second": round(float(np.median(counts[name]))),
            "median_of_paired_ratios": round(float(np.median(ours / np.array(counts[name]))), 2),
        }
        for name in ("map-style", "iterable")
    ]


# --- (c) waiting, (d) memory ----------------------------------------------------------------------------------


class Shares(LocalHooks):
    """Keeps the shares of its time that a training waited for data, without the first, which fills the window."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec)
        self.shares: list[float] = []

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        self.shares.append(metrics["train/data_wait_share"])


def waits(storage: str, key: str, conf: str, load: str, seconds: float, threads: int, answer: Any) -> None:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    spec = spec_of(conf, load, max_seconds=seconds)
    hooks = Shares(spec)
    Session(spec, open_prepared(open_store(storage), key)).run(hooks)
    answer.put({f"{load}_wait_share": round(float(np.mean(hooks.shares[1:])), 4), "first": round(hooks.shares[0], 4)})


def memory(storage: str, key: str, answer: Any) -> None:
    """Megabytes that a process grows by while it streams an epoch, at most."""
    prepared = open_prepared(open_store(storage), key)
    spec = spec_of("image_vae", "stream")
    batches = make_batches(prepared, "train", spec.training, seed=0)
    process = psutil.Process()
    before = most = process.memory_info().rss
    rows = prepared.manifest.splits["train"]["rows"]
    for number in range(rows // BATCH):
        batches.batch(number)
        if number % 20 == 0:
            most = max(most, process.memory_info().rss)
    batches.close()
    answer.put(
        {"rows": rows, "megabytes_of_examples": round(rows * 784 / 1e6), "grew_by_mb": round((most - before) / 1e6)}
    )


def answer_of(target: Any, *arguments: Any) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=target, args=(*arguments, queue))
    process.start()
    result: dict[str, Any] = queue.get()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", default=["training", "loaders", "waits", "memory"])
    parser.add_argument("--slices", type=int, default=15)
    parser.add_argument("--slice-seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=SHARED_DATA)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        write_pictures(store, "image_vae", spec_of("image_vae", "stream"), options.data, 300_000)
        write_text(store, "text_rnn", spec_of("text_rnn", "stream"), options.data, 30)
        for conf in ("image_vae", "text_rnn"):
            if "training" in options.parts:
                found = compare_training(store.uri, conf, conf, options.threads, options.slices, options.slice_seconds)
                print(json.dumps(found), flush=True)
        if "loaders" in options.parts:
            for line in compare_loaders(open_prepared(store, "image_vae"), 5, 2 * options.slice_seconds):
                print(json.dumps(line), flush=True)
        for conf, load in itertools.product(("image_vae", "text_rnn"), ("stream", "memory")):
            if "waits" in options.parts:
                seconds = options.slices * options.slice_seconds
                found = answer_of(waits, store.uri, conf, conf, load, seconds, options.threads)
                print(json.dumps({"waiting": conf, **found}), flush=True)
        for count in (150_000, 300_000, 600_000, 1_200_000):
            if "memory" in options.parts:
                write_pictures(store, str(count), spec_of("image_vae", "stream"), options.data, count)
                print(json.dumps({"memory": "streamed", **answer_of(memory, store.uri, str(count))}), flush=True)


if __name__ == "__main__":
    main()
