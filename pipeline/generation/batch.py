"""Batch generation: a model's samples as files, with a record of where they come from.  [mlflow through registry]

`atelier generate` calls `generate` in its own process; no Ray.

    OUT/NAME-00000.png|txt|wav … · overview.png (pictures, sounds) · provenance.json (written last)
"""

from __future__ import annotations

import datetime
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import SpecError
from pipeline.generation.asking import Wish, ask
from pipeline.generation.sampling import SamplingOptions, draw, load_bundle, overview
from pipeline.progress import Progress, silent
from pipeline.release.finding import download, find
from pipeline.release.tracking import versions
from pipeline.storage import open_store

OVERVIEW, PROVENANCE = "overview.png", "provenance.json"


def generate(
    model_uri: str,
    count: int,
    seed: int,
    out: Path,
    options: SamplingOptions | None = None,
    tracking_uri: str = "",
    prompt: str | None = None,
    labels: Sequence[str] = (),
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Draw `count` samples of the model at `model_uri` into the folder `out`; returns the provenance.

    `labels` are given in turn. The provenance says of each file what it was asked for, also where nobody asked and the
    condition was drawn. The same arguments give the same files, byte for byte (`provenance.json` says when they were
    made). `out` may hold what an earlier call wrote, which is replaced, and nothing else. `tracking_uri` is not needed
    for a folder. Raises: RegistryError, TrackingError, SpecError, StorageError.
    """
    options = options or SamplingOptions()
    earlier = _earlier_files(out)
    with tempfile.TemporaryDirectory() as temporary:
        found = find(model_uri, tracking_uri)
        bundle = load_bundle(download(found, tracking_uri, Path(temporary)), device)
    chosen, wishes = ask(bundle, count, seed, labels, prompt or None, options)
    raws = draw(bundle, count, seed, chosen, progress=progress)

    name = found.name or bundle.spec.name
    names = [f"{name}-{i:05d}{bundle.codec.extension}" for i in range(count)]
    files = {file: bundle.codec.to_bytes(raw) for file, raw in zip(names, raws, strict=True)}
    sheet = overview(raws, bundle.layout.modality, bundle.layout.sample_rate_hz)
    if sheet is not None:
        files[OVERVIEW] = sheet
    corpus = bundle.manifest["corpus"]
    provenance = {
        "model_uri": found.model_uri,
        "asked_for": model_uri,
        "model_version": found.version,
        "run_id": found.run_id,
        "weights_sha256": bundle.weights_sha256,
        "prepared": bundle.manifest["key"],
        "corpus_fingerprint": corpus["fingerprint"],
        "licence": corpus.get("licence"),
        "seed": seed,
        "count": count,
        "options": {
            **{key: value for key, value in asdict(options).items() if not key.startswith("asked_")},
            "prompt": prompt,
            "labels": list(labels),
        },
        "asked": {file: asdict(wish) for file, wish in zip(names, wishes, strict=True) if wish != Wish()},
        "device": str(bundle.device),
        "versions": versions(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    store = open_store(str(out))
    for leftover in earlier:
        (out / leftover).unlink(missing_ok=True)
    store.make_dir()
    for file, data in files.items():
        store.write_bytes(data, file)
    store.write_json(provenance, PROVENANCE)
    return provenance


def _earlier_files(out: Path) -> list[str]:
    """What an earlier `generate` left in `out`. Raises: SpecError when anything else is there."""
    if not out.exists():
        return []
    if not out.is_dir():
        raise SpecError(f"--out {out}: this is a file; name a folder")
    names = sorted(path.name for path in out.iterdir())
    try:
        recorded = set(json.loads((out / PROVENANCE).read_bytes())["files"]) | {PROVENANCE}
    except (OSError, ValueError, KeyError, TypeError):
        recorded = set()
    strange = [name for name in names if name not in recorded]
    if strange:
        raise SpecError(
            f"--out {out}: the folder holds {strange[0]!r}"
            + (f" and {len(strange) - 1} more" if strange[1:] else "")
            + ", which 'atelier generate' did not write; name an empty or a new folder"
        )
    return names
