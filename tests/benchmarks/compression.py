"""Size, writing and reading speed of shards under Parquet's compressions and encodings, on real corpora.

    python -m tests.benchmarks.compression [--data FOLDER] [--rounds 3]

One thread, in memory, in row groups as `ShardWriter` makes them; MB (10^6 bytes) of examples a second, the best of
some rounds that take turns, and the file's bytes to one byte of examples. `list` is a column of lists of numbers, which
is how Arrow stores a tensor, `bytes` one value of fixed size an example.
"""

from __future__ import annotations

import argparse
import io
import itertools
import lzma
import tarfile
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tokenizers import ByteLevelBPETokenizer

from pipeline.data.shards import GROUP_BYTES
from tests.conftest import SHARED_DATA

MEGABYTES = 8
COMPRESSIONS: list[tuple[str, int | None]] = [
    ("zstd", 1),
    ("zstd", 3),
    ("zstd", 9),
    ("lz4", None),
    ("snappy", None),
    ("none", None),
]
STORED = ["bytes", "bytes split", "bytes delta", "list"]
"""`split` is BYTE_STREAM_SPLIT, `delta` DELTA_BYTE_ARRAY (common prefixes)."""


def mnist(data: Path) -> np.ndarray:
    return np.asarray(np.load(data / "image" / "mnist.npz")["x_train"]).reshape(-1, 28 * 28)


def cifar(data: Path) -> np.ndarray:
    with tarfile.open(data / "image" / "cifar10_jpeg.tar.xz") as tar:
        files = (member for member in tar if member.name.endswith(".jpg"))
        pictures = [np.asarray(Image.open(tar.extractfile(file))) for file in itertools.islice(files, 3000)]
    return np.stack(pictures).transpose(0, 3, 1, 2).reshape(len(pictures), -1)


def waveforms(data: Path) -> np.ndarray:
    with tarfile.open(data / "audio" / "fsdd.tar.xz") as tar:
        opened = (tar.extractfile(member) for member in tar if member.name.endswith(".wav"))
        files = [file.read() for file in opened if file is not None]
    samples = []
    for file in files:
        with wave.open(io.BytesIO(file)) as sound:
            samples.append(np.frombuffer(sound.readframes(sound.getnframes()), np.int16))
    return _cut(np.concatenate(samples), 4096)


def text(data: Path) -> bytes:
    captions = (data / "text" / "coco_captions" / "train.txt").read_bytes()
    return (data / "text" / "tinyshakespeare.txt").read_bytes() + captions


def text_bytes(data: Path) -> np.ndarray:
    return _cut(np.frombuffer(text(data), np.uint8), 128)


def chinese_bytes(data: Path) -> np.ndarray:
    return _cut(np.frombuffer(lzma.decompress((data / "text" / "tang_poems.jsonl.xz").read_bytes()), np.uint8), 128)


def bpe_tokens(data: Path) -> np.ndarray:
    words = text(data).decode()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(words.splitlines(), vocab_size=4096, show_progress=False)
    return _cut(np.array(tokenizer.encode(words).ids, np.uint16), 128)


def _cut(stream: np.ndarray, length: int) -> np.ndarray:
    return stream[: len(stream) // length * length].reshape(-1, length)


def column(x: np.ndarray, stored: str) -> pa.Array:
    if stored == "list":
        return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    return pa.Array.from_buffers(pa.binary(x.itemsize * x.shape[1]), len(x), [None, pa.py_buffer(x)])


def write(table: pa.Table, group_rows: int, stored: str, compression: str, level: int | None) -> pa.Buffer:
    encodings: dict[str, Any] = {"bytes split": {"x": "BYTE_STREAM_SPLIT"}, "bytes delta": {"x": "DELTA_BYTE_ARRAY"}}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=group_rows,
        compression=compression,
        compression_level=level,
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        column_encoding=encodings.get(stored),
    )
    return sink.getvalue()


def read(buffer: pa.Buffer) -> None:
    with pq.ParquetFile(pa.BufferReader(buffer), pre_buffer=False, page_checksum_verification=True) as file:
        for number in range(file.num_row_groups):
            file.read_row_group(number, use_threads=False)


def measure(name: str, x: np.ndarray, rounds: int) -> Iterator[str]:
    x = np.ascontiguousarray(x[: MEGABYTES * 10**6 // x[0].nbytes])
    group_rows = max(1, GROUP_BYTES // x[0].nbytes)
    tables = {stored: pa.table({"x": column(x, stored)}) for stored in STORED}
    cases = list(itertools.product(STORED, COMPRESSIONS))
    best: dict[Any, list[float]] = {case: [float("inf"), float("inf"), 0.0] for case in cases}
    for _ in range(rounds):
        for case in cases:
            stored, (compression, level) = case
            start = time.perf_counter()
            buffer = write(tables[stored], group_rows, stored, compression, level)
            written = time.perf_counter()
            read(buffer)
            read_at = time.perf_counter()
            found = best[case]
            best[case] = [min(found[0], written - start), min(found[1], read_at - written), buffer.size / x.nbytes]
    megabytes = x.nbytes / 1e6
    for (stored, (compression, level)), (to_write, to_read, ratio) in best.items():
        label = compression if level is None else f"{compression} {level}"
        yield (
            f"{name:<14} {stored:<12} {label:<7} size {ratio:6.3f}   write {megabytes / to_write:6.0f} MB/s   "
            f"read {megabytes / to_read:6.0f} MB/s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=SHARED_DATA)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for corpus in (mnist, cifar, waveforms, text_bytes, chinese_bytes, bpe_tokens):
        for line in measure(corpus.__name__, corpus(options.data), options.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
