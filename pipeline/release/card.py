"""The model card: a page of Markdown on what a model is, what it learned from, how well it does, whence it comes.

From the spec, the manifest of the prepared set, the scores and what the evaluation found; kept in the registered model,
its run (`card.md`) and, as far as MLflow's column holds it, its description. The gate's decision is added when it is
made (`conclusion`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.data.layout import Layout
from pipeline.evaluation.metric import DEFINITIONS, Score
from pipeline.generation.asking import Takes, in_turn
from pipeline.release.gate import WORDS_OF_FINDINGS
from pipeline.spec import RunSpec
from pipeline.spec.release import bare

MODALITIES = {"text": "texts", "image": "pictures", "audio": "sounds"}
NO_LICENCE = "not stated: find out before you publish samples"


def model_card(
    spec: RunSpec,
    manifest: Mapping[str, Any],
    scores: Mapping[str, Score],
    findings: Collection[str] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> str:
    """The card as Markdown; `manifest` as a dict, `scores` by key.

    `findings`: what the evaluation found wrong, None when it did not look; `provenance`: names and values of the run,
    the commit, the checksums and the packages.
    """
    layout = manifest["layout"]
    family, backbone, codec = spec.model.family.kind, spec.model.backbone.kind, spec.data.codec.kind
    lines = [
        f"# {spec.name}",
        "",
        f"A {family} with a {backbone} backbone that generates {MODALITIES[layout['modality']]} (codec `{codec}`).",
        "",
        "## What it learned from",
        "",
        *_corpus(manifest),
        "",
        "## Training",
        "",
        *_training(spec),
        "",
        f"## Scores on the {spec.evaluation.split} split",
        "",
        *(_scores(scores) or ["Not scored."]),
        "",
        "## What the evaluation found",
        "",
        *_findings(findings),
        "",
        "## What it may be asked for",
        "",
        *_asking(spec, manifest),
        "",
        "## Intended use",
        "",
        f"To draw {MODALITIES[layout['modality']]} like those of the corpus, for study and for work that its licence "
        "allows. Samples resemble the corpus, with its gaps and its biases, and may repeat parts of it; they are no "
        "evidence of anything outside it.",
        "",
        "```python",
        f'model = mlflow.pyfunc.load_model("models:/{spec.registry.name or spec.name}@champion")',
        f"model.predict(pd.DataFrame({_example(spec, manifest)}))  # sample, media_type, seed",
        "```",
    ]
    if provenance:
        lines += ["", "## Provenance", "", *(f"- {name}: `{value}`" for name, value in provenance.items())]
    return "\n".join(lines) + "\n"


def _corpus(manifest: Mapping[str, Any]) -> list[str]:
    corpus, report, layout = manifest["corpus"], manifest["report"], manifest["layout"]
    source = corpus.get("source", {})
    where = source.get("path") or source.get("name") or "unknown"
    splits = ", ".join(f"{name} {entry['rows']:,}" for name, entry in manifest["splits"].items())
    lines = [
        f"- Corpus: `{source.get('kind', 'unknown')}` {where}",
        f"- Licence of the data: {corpus.get('licence') or NO_LICENCE}",
        f"- Fingerprint `{corpus['fingerprint']}`, prepared set `{manifest['key']}`",
        f"- Examples: {splits}",
        f"- Records: {report.get('read', 0):,} read, {report.get('quarantined_count', 0):,} quarantined",
    ]
    if dropped := report.get("dropped"):
        lines.append(f"- Dropped: {', '.join(f'{count:,} {reason}' for reason, count in dropped.items())}")
    if masked := report.get("personal_data"):
        lines.append(f"- Personal data masked: {', '.join(f'{count:,} {kind}' for kind, count in masked.items())}")
    if leaked := report.get("leakage", {}).get("units"):
        lines.append(f"- Leakage: {leaked:,} clusters or groups lie on several sides of the given split")
    if labels := layout.get("labels"):
        shown = ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")
        lines.append(f"- Labels ({len(labels)}): {shown}")
    return lines


def _asking(spec: RunSpec, manifest: Mapping[str, Any]) -> list[str]:
    """What samples may be asked for."""
    takes = Takes.of(spec, Layout.from_dict(manifest["layout"])).in_words()
    return [f"- {line}" for line in takes] or ["Nothing in particular: samples are drawn as the corpus has them."]


def _example(spec: RunSpec, manifest: Mapping[str, Any]) -> str:
    """A row for `predict`, with what the model may be asked for."""
    (wish,) = in_turn(spec, Layout.from_dict(manifest["layout"]), 1)
    asked = {key: [value] for key, value in (("label", wish.label), ("prompt", wish.prompt)) if value is not None}
    return json.dumps({"count": [4], "seed": [7], **asked}, ensure_ascii=False)


def _training(spec: RunSpec) -> list[str]:
    training = spec.training
    limit = f", at most {training.max_seconds:g} s" if training.max_seconds else ""
    limit += f", at most {training.epochs:g} epochs" if training.epochs else ""
    begun = f"the weights of `{training.init_from}`" if training.init_from else "new weights"
    return [
        f"- {training.steps:,} steps of {training.batch_size} examples{limit}, from {begun}",
        f"- {training.optimizer}, learning rate {training.lr:g} ({training.schedule}), seed {spec.seed}",
    ]


def _scores(scores: Mapping[str, Score]) -> list[str]:
    if not scores:
        return []
    lines = ["| score | value | 95% interval | better | taken |", "|---|---|---|---|---|"]
    for key, score in sorted(scores.items()):
        known = DEFINITIONS.get(bare(key))
        title = f"`{key}`{f' {known.title}' if known else ''}"
        ends = f"{score.interval[0]:.5g} to {score.interval[1]:.5g}" if score.interval else "none"
        taken = ", ".join(f"{name} {_short(value)}" for name, value in score.protocol.items())
        lines.append(f"| {title} | {score.value:.5g} {score.unit} | {ends} | {score.better or '–'} | {taken} |")
    return lines


def _short(value: Any) -> str:
    """A value of a protocol, of a checksum its beginning."""
    text = str(value)
    return f"{text[:12]}…" if len(text) >= 40 and set(text) <= set("0123456789abcdef") else text


def _findings(findings: Collection[str] | None) -> list[str]:
    if findings is None:
        return ["It did not look for copies of training examples."]
    if not findings:
        return ["Nothing wrong: no copies of training examples were found, within what the scores above measure."]
    return [f"- **{name}**: {WORDS_OF_FINDINGS.get(name, 'see the scores')}" for name in sorted(findings)]
