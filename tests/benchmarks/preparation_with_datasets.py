"""The other side of `tests.benchmarks.preparation`: the same cleaning and encoding by `datasets.map`, two processes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from pipeline.data.cleaning import make_cleaner, read_lists
from pipeline.data.codec import make_codec
from pipeline.spec import load_spec
from tests.benchmarks.preparation import PROCESSES


def main() -> None:
    kind, source, conf = sys.argv[1:]
    data = load_spec(conf).data
    codec = make_codec(data.codec)
    cleaner = make_cleaner(data.cleaning, codec.modality, read_lists(data.cleaning))
    limit = data.max_record_megabytes * 2**20

    def encode(payload: Any) -> np.ndarray | None:
        opened = codec.open(payload, None, limit)
        cleaned = cleaner(opened.raw, opened.facts)
        return None if cleaned.dropped is not None else codec.encode(codec.shape(cleaned.raw)[0])

    def pictures(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        made = [encode(Path(path).read_bytes()) for path in batch["path"]]
        kept = [(x, label) for x, label in zip(made, batch["label"], strict=True) if x is not None]
        return {"x": [x for x, _ in kept], "name": [label for _, label in kept]}

    def texts(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"x": [x for text in batch["text"] if (x := encode(text)) is not None]}

    start = time.perf_counter()
    if kind == "pictures":
        paths = sorted(str(path) for path in Path(source).rglob("*.jpg"))
        given = datasets.Dataset.from_dict({"path": paths, "label": [Path(path).parent.name for path in paths]})
        layout = codec.layout()
        features = datasets.Features(
            {"x": datasets.Array3D(layout.shape, layout.stored_dtype), "name": datasets.Value("string")}
        )
        call: Any = pictures
    else:
        given = datasets.load_dataset("json", data_files=source, split="train")
        features = datasets.Features({"x": datasets.Sequence(datasets.Value(codec.layout().stored_dtype))})
        call = texts
    loaded = time.perf_counter()
    mapped = given.map(call, batched=True, num_proc=PROCESSES, remove_columns=given.column_names, features=features)
    ended = time.perf_counter()
    figures = {"rows": len(given), "kept": len(mapped), "load": round(loaded - start, 2)}
    print(json.dumps({**figures, "map": round(ended - loaded, 2), "seconds": round(ended - start, 2)}))


if __name__ == "__main__":
    main()
