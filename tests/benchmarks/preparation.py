"""Preparation beside Hugging Face `datasets.map`: rows/s, MB/s, and the memory of the whole Ray session.

    python -m tests.benchmarks.preparation pictures --data ../shared/data
    python -m tests.benchmarks.preparation text --data ../shared/data --megabytes 1024
    python -m tests.benchmarks.preparation memory --data ../shared/data --megabytes 2048

Both sides do the same cleaning and encoding, with the same functions, in two processes, and in turn, twice; a run of
ours is `atelier prepare` in a new storage (reading, cleaning, masking, near duplicates, split, shards with
checksums), timed from the moment Ray is up and the driver has imported what it needs, as the other side is after its
imports, or as a whole with Ray's start. Needs `datasets` (the extra
`huggingface`). Prints one JSON line a run; needs `--data`, the folder with the real corpora.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

PROCESSES = 2


def pictures_folder(data: Path, root: Path) -> Path:
    """The 50,000 training JPEGs of the CIFAR-10 archive, unpacked."""
    folder = root / "cifar"
    if not folder.exists():
        with tarfile.open(data / "image" / "cifar10_jpeg.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    return folder / "train" if (folder / "train").exists() else next(folder.glob("*/train"))


def passages(data: Path) -> list[str]:
    """The given texts in passages of about 1 to 3 kB."""
    import lzma

    found: list[str] = []
    lines = (data / "text" / "tinyshakespeare.txt").read_text().split("\n\n")
    captions = (data / "text" / "coco_captions" / "train.txt").read_text().splitlines()
    with lzma.open(data / "text" / "dialogues.jsonl.xz", "rt") as file:
        dialogues = [" ".join(turn["text"] for turn in json.loads(line)["turns"]) for line in file]
    with lzma.open(data / "text" / "tang_poems.jsonl.xz", "rt") as file:
        poems = [json.loads(line)["text"] for line, _ in zip(file, range(5000), strict=False)]
    for pieces, number in ((lines, 12), (captions, 30), (dialogues, 1), (poems, 15)):
        found += ["\n".join(pieces[start : start + number]) for start in range(0, len(pieces), number)]
    return found


def write_text(data: Path, path: Path, megabytes: int) -> int:
    """JSON lines of edited passages, until the file has its size; the number of lines."""
    rng, given, written, count = random.Random(0), passages(data), 0, 0
    words = sorted({word for text in given[:500] for word in text.split()})
    with open(path, "w", encoding="utf-8") as file:
        while written < megabytes * 2**20:
            text = rng.choice(given).split(" ")
            for _ in range(max(3, len(text) // 3)):  # far enough from each other to be documents of their own
                text[rng.randrange(len(text))] = rng.choice(words)
            line = json.dumps({"text": " ".join(text)}, ensure_ascii=False) + "\n"
            written += len(line.encode())
            count += 1
            file.write(line)
    return count


def conf(kind: str, source: Path, storage: Path) -> dict[str, Any]:
    base = yaml.safe_load(Path("conf/image_vae.yaml" if kind == "pictures" else "conf/text_rnn.yaml").read_text())
    base["storage"] = str(storage)
    if kind == "pictures":
        base["data"] = {
            "source": {"kind": "files", "path": str(source), "label_from": "folder"},
            "codec": {"kind": "image", "size": [32, 32], "channels": 3},
            "cleaning": {"image": {"min_side": 8, "min_contrast": 0.01}},
        }
        base["model"]["backbone"] = {"kind": "mlp"}
    else:
        base["data"] = {
            "source": {"kind": "jsonl", "path": str(source)},
            "codec": {"kind": "bytes", "length": 128},
            "cleaning": {"text": {"personal_data": "mask", "min_characters": 100, "max_symbols": 0.5}},
        }
    return base


class Memory(threading.Thread):
    """The largest proportional set size of a process and all below it, looked at twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak, self.ended = psutil.Process(pid), 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            total = 0
            try:
                family = [self.root, *self.root.children(recursive=True)]
            except psutil.Error:
                continue
            for process in family:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)


def ours(kind: str, source: Path, root: Path, near: str) -> dict[str, Any]:
    """`atelier prepare` as a command in a new storage."""
    storage = root / "storage"
    shutil.rmtree(storage, ignore_errors=True)
    spec = conf(kind, source, storage)
    spec["data"]["duplicates"] = {"near": near}
    path = root / "conf.yaml"
    path.write_text(yaml.safe_dump(spec))
    start = time.perf_counter()
    command = [sys.executable, "-m", "jobs", "prepare", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    memory = Memory(process.pid)
    out, _ = process.communicate()
    whole = time.perf_counter() - start
    memory.ended.set()
    if process.returncode:
        raise SystemExit(out)
    answer = json.loads(out.splitlines()[-1])
    details = json.loads(next((storage / "prepared").glob("*/preparation.json")).read_text())
    written = sum(file.stat().st_size for file in storage.glob("prepared/*/*.parquet"))
    shutil.rmtree(storage)
    return {
        "side": f"atelier, near {near}",
        "rows": answer["report"]["read"],
        "seconds": answer["seconds"]["prepare"],
        "seconds_with_start": round(whole, 2),
        "peak_gib": round(memory.peak / 2**30, 2),
        "stages": details["seconds"],
        "written_mb": round(written / 2**20),
    }


def theirs(kind: str, source: Path, root: Path) -> dict[str, Any]:
    """`datasets`: load, then map the same cleaning and encoding in two processes."""
    cache = root / "huggingface"
    shutil.rmtree(cache, ignore_errors=True)
    environment = {
        **os.environ,
        "HF_HOME": str(cache),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }
    path = root / "conf.yaml"
    path.write_text(yaml.safe_dump(conf(kind, source, root / "unused")))
    command = [sys.executable, "-m", "tests.benchmarks.preparation_with_datasets", kind, str(source), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    memory = Memory(process.pid)
    out, _ = process.communicate()
    memory.ended.set()
    if process.returncode:
        raise SystemExit(out)
    shutil.rmtree(cache, ignore_errors=True)
    return {"side": "datasets", **json.loads(out.splitlines()[-1]), "peak_gib": round(memory.peak / 2**30, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["pictures", "text", "memory"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "atelier-preparation")
    arguments = parser.parse_args()
    root: Path = arguments.folder
    root.mkdir(parents=True, exist_ok=True)
    kind = "text" if arguments.kind == "memory" else arguments.kind
    if kind == "pictures":
        source = pictures_folder(arguments.data, root)
        size = sum(file.stat().st_size for file in source.rglob("*.jpg"))
    else:
        source = root / f"text-{arguments.megabytes}.jsonl"
        if not source.exists():
            write_text(arguments.data, source, arguments.megabytes)
        size = source.stat().st_size
    runs: list[Callable[[], dict[str, Any]]] = [lambda: ours(kind, source, root, "keep")]
    if arguments.kind != "memory":
        runs = [*runs, lambda: ours(kind, source, root, "off"), lambda: theirs(kind, source, root)] * arguments.pairs
    results = []
    for run in runs:
        result = run()
        result["rows_per_second"] = round(result["rows"] / result["seconds"])
        result["mb_per_second"] = round(size / 2**20 / result["seconds"], 2)
        results.append(result)
        print(json.dumps(result), flush=True)
    for pair in _triples(results):
        mine, plain, other = (result["rows_per_second"] for result in pair)
        print(json.dumps({"with near duplicates": round(mine / other, 3), "without": round(plain / other, 3)}))


def _triples(results: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(results) - 2, 3):
        yield results[start : start + 3]


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
