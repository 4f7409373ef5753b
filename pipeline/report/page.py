"""The page of a run: curves, samples, scores, what was found, data card, spec and timings as one HTML file.

Called by the driver at the end of a run with plain values; pictures and sounds become data URIs, so that the page
makes no request. Everything that came from data or spec is escaped by the template. A section without input is
absent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.data.manifest import Manifest
from pipeline.evaluation.definitions import DEFINITIONS
from pipeline.evaluation.latent import LatentView
from pipeline.evaluation.metric import Score, Scores
from pipeline.report import curves
from pipeline.report.data_card import data_card, label_bars, split_rows
from pipeline.report.findings import (
    gate_section,
    inherited_section,
    nearest_section,
    surprise_section,
    temperature_charts,
    verdict_section,
    warnings_section,
)
from pipeline.report.latent_view import latent_section
from pipeline.report.media import MOST_CHARACTERS, Media, data_uri
from pipeline.report.rendering import FAMILIES, MODALITIES, duration, plain, render, score_row
from pipeline.report.step_time import step_time_section
from pipeline.spec import RunSpec

MOST_SAMPLES = {"image": 64, "audio": 12, "text": 6}
SAMPLE_BYTES, LATENT_BYTES, NEAREST_BYTES, EXAMPLE_BYTES = 5_000_000, 6_000_000, 2_500_000, 1_000_000
MOST_BYTES = 16_000_000
"""A page is smaller than this whatever it is given: media have the allowances above, charts and tokens their numbers,
and what is left out is said where it would stand. A usual page has some hundred kilobytes."""
MOST_SCORES, MOST_SPEC_CHARACTERS = 200, 100_000
HEADLINES = ("nll_nats", "bits_per_char", "nats_per_token", "frechet", "wasserstein")
"""The scores that may stand at the top, in the order of preference."""

logger = logging.getLogger(__name__)


def build_report(
    out: Path | None,
    *,
    spec: RunSpec,
    manifest: Manifest | Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    scores: Mapping[str, Score],
    samples: Sequence[Any],
    asked: Sequence[str] = (),
    overview_png: bytes | None = None,
    seconds: Mapping[str, float],
    versions: Mapping[str, Any],
    created: datetime | None = None,
    examples: Sequence[Any] = (),
    latent: LatentView | None = None,
    verdict: Mapping[str, Any] | None = None,
    gate: Mapping[str, Any] | None = None,
    nearest: Sequence[Mapping[str, Any]] | None = None,
    temperature: Mapping[str, Sequence[Sequence[float]]] | None = None,
    surprise: Sequence[tuple[str, float | None]] | None = None,
    warnings: Sequence[Mapping[str, Any]] | None = None,
    inherited: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML, also written whole to `out` where given; smaller than `MOST_BYTES`.

    `history` rows are {"step": n, "train/loss": …}; `samples`, and `examples` of the corpus, are raw (texts, uint8
    `[H, W, C]`, float32 `[T]`); `asked` says in words what each sample was asked for, if anything; `overview_png` is
    shown when there are no samples; `seconds` is by stage, with `total` if known. `surprise` is tokens of a held-out
    text with their nats; `warnings` are those of the training's health, and when there are none that is told;
    `findings` says the form of the others. What `Scores` refused is told with its reason. Equal arguments give equal
    bytes. Raises: StorageError when `out` cannot be written.
    """
    facts = manifest.as_dict() if isinstance(manifest, Manifest) else dict(manifest)
    layout = facts["layout"]
    created = created or datetime.now(UTC)
    html = render(
        "run.html.j2",
        out,
        title=spec.name,
        spec=spec,
        family=FAMILIES[spec.model.family.kind],
        modality=MODALITIES[layout["modality"]],
        headline=_headline(spec, history, scores, seconds),
        verdict=verdict_section(verdict),
        gate=gate_section(gate),
        warnings=warnings_section(warnings),
        samples=samples_section(layout, samples, SAMPLE_BYTES, asked=asked),
        overview=_overview(overview_png) if not samples else None,
        nearest=nearest_section(nearest, layout, NEAREST_BYTES),
        scores=[score_row(key, score) for key, score in list(scores.items())[:MOST_SCORES]],
        refused=sorted(scores.refused.items()) if isinstance(scores, Scores) else [],
        temperature=temperature_charts(temperature),
        latent=latent_section(latent, layout, LATENT_BYTES),
        surprise=surprise_section(surprise),
        inherited=inherited_section(inherited),
        charts=curves.charts_of(history),
        card=data_card(facts),
        labels=label_bars(facts),
        splits=split_rows(facts),
        examples=samples_section(layout, examples, EXAMPLE_BYTES),
        quarantined=facts["report"].get("quarantined", [])[:10],
        stages=_stages(seconds),
        step_time=step_time_section(history),
        total=_total(seconds),
        versions=[(name, plain(value)) for name, value in versions.items()],
        spec_yaml=spec.as_yaml()[:MOST_SPEC_CHARACTERS],
        created=date_in_words(created),
    )
    if len(html) > MOST_BYTES:
        logger.warning("the report of %s has %s bytes, the aim is below %s", spec.name, len(html), MOST_BYTES)
    return html


def samples_section(
    layout: Mapping[str, Any],
    samples: Sequence[Any],
    most_bytes: int,
    most: Mapping[str, int] = MOST_SAMPLES,
    most_characters: int = MOST_CHARACTERS,
    asked: Sequence[str] = (),
) -> dict[str, Any]:
    """The first samples that fit in `most_bytes`, at most as many as `most` of their modality, with what they were
    `asked` for, and how many are not shown."""
    media = Media(layout, most_bytes)
    items = media.show_all(samples, most[media.kind], most_characters)
    for item, words in zip(items, asked, strict=False):
        item["asked"] = words
    return {"kind": media.kind, "items": items, "more": media.left_out}


def date_in_words(created: datetime) -> str:
    return created.strftime("%d %B %Y, %H:%M UTC").lstrip("0")


def _overview(png: bytes | None) -> str | None:
    return data_uri("image/png", png) if png and len(png) < SAMPLE_BYTES / 2 else None


def _headline(
    spec: RunSpec,
    history: Sequence[Mapping[str, float]],
    scores: Mapping[str, Score],
    seconds: Mapping[str, float],
) -> list[tuple[str, str, str]]:
    """Up to four (value, its unit, what it is) that tell the run at a glance."""
    found: list[tuple[str, str, str]] = []
    by_name = {key.partition("/")[2]: score for key, score in scores.items()}
    for name in HEADLINES:
        if name in by_name and len(found) < 2:
            definition = DEFINITIONS[name]
            score = by_name[name]
            better = f", {score.better} is better" if score.better else ""
            found.append((curves.number(score.value), definition.unit + better, definition.title))
    steps = max((int(row.get("step", 0)) for row in history), default=0)
    if steps:
        found.append((f"{steps:,}", f"of {spec.training.batch_size:,} examples", "Training steps"))
    if seconds:
        found.append((duration(_total(seconds)), "from start to report", "Time"))
    return found


def _total(seconds: Mapping[str, float]) -> float:
    return seconds["total"] if "total" in seconds else math.fsum(seconds.values())


def _stages(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each stage with its share of the total, in percent."""
    total = max(_total(seconds), 1e-9)
    return [
        {"name": name.replace("_", " "), "seconds": value, "share": min(100.0, 100 * value / total)}
        for name, value in seconds.items()
        if name != "total"
    ]
