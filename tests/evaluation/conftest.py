"""Small prepared sets and bundles for the tests of the evaluation, made without Ray."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.data.codec import make_codec
from pipeline.data.manifest import FOLDER, FORMAT_VERSION, Manifest
from pipeline.data.prepared import Prepared
from pipeline.data.shards import ShardWriter
from pipeline.evaluation import features
from pipeline.evaluation.extractors.autoencoder import AutoencoderConfig
from pipeline.evaluation.extractors.classifier import ClassifierConfig
from pipeline.generation.sampling import save_bundle
from pipeline.models import build_model
from pipeline.spec import RunSpec, make_spec
from pipeline.storage import open_store

KEY = "0123abcd"
MLP = {"kind": "mlp", "hidden": [16]}
RECURRENT = {"kind": "recurrent", "hidden_size": 12, "embedding_size": 6, "cell": "lstm"}
PICTURES = {"kind": "image", "size": [8, 8]}
SOUNDS = {"kind": "waveform", "num_samples": 512, "sample_rate_hz": 4000}
WINDOWS = {"kind": "characters", "length": 8}
DOCUMENTS = {"kind": "bytes", "length": 24, "packing": "documents"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks on a busy machine: threads that wait for each other cost more than the arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def short_extractors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus's extractors trained for a few steps, in this process only."""
    for name, config in (("ClassifierConfig", ClassifierConfig), ("AutoencoderConfig", AutoencoderConfig)):
        monkeypatch.setattr(features, name, functools.partial(config, steps=20, batch_size=16))


@pytest.fixture
def spec_of() -> Callable[..., RunSpec]:
    """A small spec of a codec, a family and evaluation settings."""

    def make(codec: dict[str, Any], family: dict[str, Any], backbone: dict[str, Any], **evaluation: Any) -> RunSpec:
        return make_spec(
            {
                "name": "small",
                "data": {"source": {"kind": "builtin", "name": "digits"}, "codec": codec},
                "model": {"family": family, "backbone": backbone},
                "evaluation": {"nll_samples": 3, "batch_size": 7, "samples": 30, **evaluation},
            }
        )

    return make


@pytest.fixture
def prepare_small(tmp_path: Path) -> Callable[..., Prepared]:
    """Encode raws of each split (label or None beside each) into a prepared set under `tmp_path`; with `words`, each
    label's text prompt."""

    def make(
        spec: RunSpec, splits: dict[str, list[tuple[Any, str | None]]], words: dict[str, str] | None = None
    ) -> Prepared:
        codec = make_codec(spec.data.codec, single_document=True)
        raws = {name: [raw for raw, _ in rows] for name, rows in splits.items()}
        if codec.needs_fit:
            codec.fit(raws["train"])
        labels = tuple(sorted({label for _, label in splits["train"] if label is not None}))
        layout = codec.layout(labels)
        if words is not None:
            prompts = tuple(words.values())
            layout = replace(layout, prompts=prompts, prompt_counts=(1,) * len(prompts), prompt_length=16)
        store = open_store(str(tmp_path / "storage")).child(FOLDER, KEY)
        entries: dict[str, dict[str, Any]] = {}
        for name, rows in splits.items():
            tail: list[int] = []
            given = [label for _, label in rows]
            if layout.continuous:
                stream = np.concatenate([codec.encode(raw) for raw in raws[name]])
                whole = len(stream) // layout.length * layout.length
                x, tail = stream[:whole].reshape(-1, layout.length), stream[whole:].tolist()
                given = [None] * len(x)
            else:
                x = np.stack([codec.encode(raw) for raw in raws[name]])
            writer = ShardWriter(store, name, layout, 1000)
            ids = pa.array([str(row) for row in range(len(x))])
            asked = None if words is None else pa.array([words[str(label)] for label in given])
            writer.write(x, ids, ids, pa.array(given, pa.string()), asked)
            text = "".join(raws[name]) if layout.modality == "text" else ""
            entries[name] = {
                "rows": len(x),
                "records": len(rows),
                "characters": len(text),
                "utf8_bytes": len(text.encode()),
                "tail_tokens": tail,
                "labels": dict(writer.labels),
                "shards": writer.close(),
            }
        manifest = Manifest(
            FORMAT_VERSION, KEY, {"licence": "test"}, {}, {}, {}, codec.state(), layout.as_dict(), entries, {"read": 0}
        )
        store.write_json(manifest.as_dict(), "manifest.json")
        return Prepared(store, manifest)

    return make


@pytest.fixture
def bundle_of(tmp_path: Path) -> Callable[[RunSpec, Prepared], Path]:
    """The bundle of a model as it is initialised."""

    def make(spec: RunSpec, prepared: Prepared) -> Path:
        model = build_model(spec, prepared.layout)
        return save_bundle(tmp_path / "bundle", spec, prepared.manifest.as_dict(), model.state_dict())

    return make


def pictures(count: int, seed: int = 0) -> list[tuple[np.ndarray, str]]:
    """Noisy 8 × 8 pictures, bright on the left or on the right, labelled so."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        picture = rng.integers(0, 90, (8, 8, 1), dtype=np.uint8)
        picture[:, :4] += np.uint8(120 * (i % 2))
        rows.append((picture, "left" if i % 2 else "right"))
    return rows


def tones(count: int, seed: int = 0) -> list[tuple[np.ndarray, str]]:
    """Sounds of 512 samples at 4 kHz, low or high, labelled so."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(512) / 4000
    rows = []
    for i in range(count):
        wave = 0.5 * torch.sin(6.2832 * (200 if i % 2 else 900) * time) + 0.02 * torch.randn(512, generator=generator)
        rows.append((wave.numpy().astype(np.float32), "low" if i % 2 else "high"))
    return rows
