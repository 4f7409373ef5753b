"""Bundles of tiny untrained models, one a modality, for tests of what happens after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.data.codec import make_codec
from pipeline.data.manifest import FORMAT_VERSION, Manifest
from pipeline.generation.sampling import save_bundle
from pipeline.models import build_model
from pipeline.spec import RunSpec, make_spec

MODALITIES = ("text", "image", "audio")
TEXT = "To be, or not to be, that is the question:\n"

SPECS: dict[str, dict[str, Any]] = {
    "text": {
        "name": "tiny-text",
        "data": {"source": {"kind": "lines", "path": "poem.txt"}, "codec": {"kind": "characters", "length": 24}},
        "model": {"family": {"kind": "rnn"}, "backbone": {"kind": "recurrent", "hidden_size": 16}},
    },
    "image": {
        "name": "tiny-image",
        "data": {"source": {"kind": "builtin", "name": "digits"}, "codec": {"kind": "image", "size": [8, 8]}},
        "model": {"family": {"kind": "vae", "latent_size": 4}, "backbone": {"kind": "mlp", "hidden": [16]}},
    },
    "audio": {
        "name": "tiny-audio",
        "data": {
            "source": {"kind": "builtin", "name": "plucked"},
            "codec": {"kind": "waveform", "sample_rate_hz": 8000, "num_samples": 256},
        },
        "model": {"family": {"kind": "gan", "latent_size": 4}, "backbone": {"kind": "conv", "channels": [4, 8]}},
    },
}


def tiny_spec(modality: str, **changes: Any) -> RunSpec:
    return make_spec({**SPECS[modality], **changes})


def tiny_manifest(spec: RunSpec) -> dict[str, Any]:
    """A manifest as a dict, as `prepare` would make it."""
    codec = make_codec(spec.data.codec)
    if codec.needs_fit:
        codec.fit([TEXT])
    return Manifest(
        format_version=FORMAT_VERSION,
        key="0123456789abcdef",
        corpus={
            "fingerprint": "f" * 64,
            "licence": "CC0-1.0",
            "source": spec.data.source.model_dump(mode="json"),
        },
        cleaning=spec.data.cleaning.model_dump(mode="json"),
        duplicates=spec.data.duplicates.model_dump(mode="json"),
        split=spec.data.split.model_dump(mode="json"),
        codec=codec.state(),
        layout=codec.layout(("one", "two")).as_dict(),
        splits={"train": {"rows": 90}, "validation": {"rows": 0}, "test": {"rows": 10}},
        report={"read": 101, "kept": 100, "quarantined_count": 1},
    ).as_dict()


def make_bundle(folder: Path, modality: str, **changes: Any) -> Path:
    """Write a bundle of an untrained model."""
    spec = tiny_spec(modality, **changes)
    manifest = tiny_manifest(spec)
    codec = make_codec(spec.data.codec)
    codec.restore(manifest["codec"])
    return save_bundle(folder, spec, manifest, build_model(spec, codec.layout()).state_dict())
