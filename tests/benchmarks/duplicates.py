"""Near-duplicates planted in real corpora: how many are found, what else is found, and what it costs.

    python -m tests.benchmarks.duplicates [--grids FOLDER] [CORPUS …]

Of each corpus 5% of the records (2,500 at most) get a copy that was edited, re-encoded, resized or re-sampled. A line
of JSON a corpus. `unplanted` are pairs among the corpus's own records, right or wrong: texts are printed, and pictures
written as grids to FOLDER, to be looked at.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from pipeline.data.builtin import BUILTINS
from pipeline.data.duplicates import sign_batch
from pipeline.data.layout import Modality
from tests.conftest import SHARED_DATA
from tests.planted_duplicates import find_planted, near


def passages() -> list[str]:
    text = (SHARED_DATA / "text/tinyshakespeare.txt").read_text()
    cuts = np.cumsum(np.random.default_rng(0).integers(1000, 2000, len(text) // 1500))
    cuts = cuts[cuts < len(text)]
    return [text[start:end] for start, end in zip(cuts[:-1], cuts[1:], strict=True)]


def poems() -> list[str]:
    with lzma.open(SHARED_DATA / "text/tang_poems.jsonl.xz", "rt") as file:
        return [json.loads(line)["text"] for line in file]


def dialogues() -> list[str]:
    with lzma.open(SHARED_DATA / "text/dialogues.jsonl.xz", "rt") as file:
        return ["\n".join(turn["text"] for turn in json.loads(line)["turns"]) for line in file]


def lines(name: str) -> list[str]:
    return (SHARED_DATA / "text" / name).read_text().splitlines()


def arrays(name: str) -> list[np.ndarray]:
    with np.load(SHARED_DATA / "image" / name) as archive:
        return list(np.concatenate([archive["x_train"], archive["x_test"]])[..., None])


def members(name: str, decode: Callable[[bytes], np.ndarray]) -> list[np.ndarray]:
    with tarfile.open(SHARED_DATA / name) as archive:
        return [decode(archive.extractfile(member).read()) for member in archive if member.isfile()]


def builtin(name: str) -> list[Any]:
    return [raw[..., None] if name == "digits" else raw for raw, _ in BUILTINS[name].items()]


CORPORA: dict[str, tuple[Modality, Callable[[], list[Any]]]] = {
    "tinyshakespeare": ("text", passages),
    "tang_poems": ("text", poems),
    "dialogues": ("text", dialogues),
    "captions": ("text", lambda: lines("coco_captions/train.txt")),
    "names": ("text", lambda: lines("names.txt")),
    "pydoc": ("text", lambda: builtin("pydoc")),
    "digits": ("image", lambda: builtin("digits")),
    "mnist": ("image", lambda: arrays("mnist.npz")),
    "fashion_mnist": ("image", lambda: arrays("fashion_mnist.npz")),
    "cifar10": (
        "image",
        lambda: members("image/cifar10_jpeg.tar.xz", lambda data: np.asarray(Image.open(BytesIO(data)))),
    ),
    "fsdd": (
        "audio",
        lambda: members("audio/fsdd.tar.xz", lambda data: soundfile.read(BytesIO(data), dtype="float32")[0]),
    ),
    "plucked": ("audio", lambda: builtin("plucked")),
}


def show(name: str, modality: Modality, raws: list[Any], pairs: np.ndarray, folder: Path | None) -> None:
    if modality == "text":
        for one, other in pairs[:5]:
            print(f"    {raws[one][:100]!r} | {raws[other][:100]!r}")
    elif modality == "image" and folder and len(pairs):
        tiles = [np.concatenate([raws[one], raws[other]], axis=1) for one, other in pairs[:128]]
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 8)
        rows = [np.concatenate(tiles[start : start + 8], axis=1) for start in range(0, len(tiles), 8)]
        grid = np.concatenate(rows)
        Image.fromarray(grid[..., 0] if grid.shape[2] == 1 else grid).save(folder / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpora", nargs="*", default=list(CORPORA), metavar="CORPUS")
    parser.add_argument("--grids", type=Path)
    options = parser.parse_args()
    for name in options.corpora:
        modality, read = CORPORA[name]
        raws = read()
        rng = np.random.default_rng(5)
        chosen = rng.choice(len(raws), min(2500, len(raws) // 20), replace=False).tolist()
        copies = [near(raws[row], modality, rng) for row in chosen]
        started = time.perf_counter()
        for raw in raws[:500]:
            sign_batch([raw], modality, 8000)
        signing = (time.perf_counter() - started) / min(500, len(raws))
        started = time.perf_counter()
        found = find_planted(raws, chosen, copies, modality)
        line = {
            "corpus": name,
            "records": len(raws),
            "planted": found.planted,
            "compared": found.compared,
            "recall": round(found.recall, 4),
            "right": found.right,
            "wrong": found.wrong,
            "unplanted": len(found.unplanted),
            "largest_cluster": found.largest,
            "candidates_a_record": round(found.candidates / len(raws), 1),
            "sign_microseconds": round(signing * 1e6),
            "all_seconds": round(time.perf_counter() - started, 1),
        }
        print(json.dumps(line), flush=True)
        show(name, modality, raws, found.unplanted, options.grids)


if __name__ == "__main__":
    main()
