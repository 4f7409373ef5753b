"""The model card: one page of Markdown that says what a model is, what it learned from and how well it does.

From the spec, the manifest of the prepared set and the scores; kept in the registered model and its description.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.spec import RunSpec

MODALITIES = {"text": "texts", "image": "pictures", "audio": "sounds"}


def model_card(spec: RunSpec, manifest: Mapping[str, Any], scores: Mapping[str, float]) -> str:
    """The card as Markdown; `manifest` as a dict, `scores` by metric key."""
    corpus, report, layout = manifest["corpus"], manifest["report"], manifest["layout"]
    family, backbone, codec = spec.model.family.kind, spec.model.backbone.kind, spec.data.codec.kind
    licence = corpus.get("licence") or "not stated: find out before you publish samples"
    splits = ", ".join(f"{name} {entry['rows']:,}" for name, entry in manifest["splits"].items())
    lines = [
        f"# {spec.name}",
        "",
        f"A {family} with a {backbone} backbone that generates {MODALITIES[layout['modality']]} (codec `{codec}`).",
        "",
        "## What it learned from",
        "",
        f"- Corpus: {_source(corpus.get('source', {}))}",
        f"- Licence: {licence}",
        f"- Fingerprint `{str(corpus['fingerprint'])[:16]}`, prepared set `{manifest['key']}`",
        f"- Examples: {splits}",
        f"- Records: {report.get('read', 0):,} read, {report.get('quarantined_count', 0):,} quarantined",
    ]
    if labels := layout.get("labels"):
        shown = ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")
        lines.append(f"- Labels ({len(labels)}; not a condition of the samples): {shown}")
    lines += ["", f"## Scores on the {spec.evaluation.split} split", ""]
    lines += [f"- `{key}`: {value:.5g}" for key, value in sorted(scores.items())] or ["Not scored."]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        f'model = mlflow.pyfunc.load_model("models:/{spec.registry.name or spec.name}@champion")',
        'model.predict(pd.DataFrame({"count": [4], "seed": [7]}))  # sample, media_type, seed',
        "```",
        "",
        "Samples resemble the corpus, with its gaps and its biases, and may repeat parts of it.",
    ]
    return "\n".join(lines) + "\n"


def _source(source: Mapping[str, Any]) -> str:
    where = source.get("path") or source.get("name") or "unknown"
    return f"`{source.get('kind', 'unknown')}` {where}"
