"""What the rows of the README's table share: train a conf without Ray Train, score it, print one line.

A row is a module `row_*.py` beside this one; its conf is in `conf/benchmarks`. Preparation runs on a local Ray that has
ended when training begins, so that the training has the machine to itself; threads are as many as this process may use.
Training and scoring take the GPU where there is one. With `--gpu` a row trains the larger model of
`conf/benchmarks/gpu`, if there is one, and is measured by the harder of its two targets.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.data.codec import make_codec
from pipeline.data.corpus import open_corpus
from pipeline.data.manifest import prepared_key
from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared, find_prepared
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.likelihood import evaluate_split
from pipeline.evaluation.metric import Scores
from pipeline.generation.sampling import Bundle, load_bundle, save_bundle
from pipeline.models.base import Sums
from pipeline.progress import silent
from pipeline.ray_session import ray_session
from pipeline.spec import RunSpec, load_spec
from pipeline.storage import open_store
from pipeline.training.in_process import train_in_process


@dataclass(frozen=True)
class TrainedRow:
    """A trained conf: its spec, set and bundle, the steps and seconds of its training, and its warnings."""

    spec: RunSpec
    prepared: Prepared
    folder: Path
    steps: int
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """The one that it was trained on."""
        return torch.device("cuda" if self.spec.training.use_gpu and torch.cuda.is_available() else "cpu")

    @property
    def bundle(self) -> Bundle:
        return load_bundle(self.folder, self.device)

    def test_sums(self) -> Sums:
        """The family's own sums over the test split, or over as much of it as the spec scores."""
        split, spec = self.prepared.load_split("test"), self.spec
        return evaluate_split(self.bundle.model, split, self.prepared.layout, spec, spec.seed, device=self.device)

    def scores(self) -> Scores:
        """Every score that fits the model, on the split that the spec names."""
        return evaluate(self.spec, self.prepared, self.folder, silent)


def options(description: str | None) -> argparse.ArgumentParser:
    """What every row can be told: where the corpora and the storage are, the seed, other keys of the conf."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder with the real corpora")
    parser.add_argument("--storage", type=Path, default=Path("storage"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gpu", action="store_true", help="the larger model, and the target that a GPU is to reach")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    return parser


def prepared_for(conf: str, storage: Path, overrides: Iterable[str] = ()) -> tuple[RunSpec, Prepared]:
    """The spec in `conf/benchmarks` and its set, which is made when it is not in the storage."""
    spec = load_spec(f"conf/benchmarks/{conf}.yaml", [f"storage={storage}", *overrides])
    store = open_store(spec.storage)
    corpus = open_corpus(spec.data.source, make_codec(spec.data.codec).modality)
    found = find_prepared(store, prepared_key(spec, corpus))
    if found is not None:
        return spec, found
    with ray_session():
        return spec, prepare(spec, store, silent, corpus)


def train(told: argparse.Namespace, conf: str, corpus: str, *settings: str) -> TrainedRow:
    """Train `conf/benchmarks/CONF.yaml` on a file of the corpora anew in this process, with `settings` of the row's own
    and then those that it was `told`."""
    settings = (f"data.source.path={told.data / corpus}", f"seed={told.seed}", *settings, *told.overrides)
    larger = f"gpu/{conf}"
    has_larger = told.gpu and Path(f"conf/benchmarks/{larger}.yaml").exists()
    spec, prepared = prepared_for(larger if has_larger else conf, told.storage, settings)
    store = open_store(spec.storage)
    key = f"{spec.name}-{time.time_ns()}"
    trained = train_in_process(spec, prepared, store, key, None, None, silent)
    folder = Path(store.local_path("rows", key))
    save_bundle(folder, spec, prepared.manifest.as_dict(), trained.weights)
    warnings = tuple(warning["kind"] for warning in trained.warnings)
    return TrainedRow(spec, prepared, folder, trained.step, trained.seconds, warnings)


def print_row(cell: str, corpus: str, target: str, met: bool, row: TrainedRow, **figures: Any) -> None:
    """The row's one line of JSON: what was reached, beside what it is measured by."""
    told = {
        "cell": cell,
        "corpus": corpus,
        "target": target,
        "met": met,
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()},
        "training_seconds": round(row.seconds),
        "steps": row.steps,
        "warnings": row.warnings,
        "seed": row.spec.seed,
        "threads": torch.get_num_threads(),
        "processors": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(told, ensure_ascii=False), flush=True)
