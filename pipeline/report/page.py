"""The page of a run: curves, samples, scores, data card, spec and timings as one HTML file without requests.

Called by the driver at the end of a run with plain values; pictures and sounds become data URIs. Everything that
came from data or spec is escaped by the template.
"""

from __future__ import annotations

import base64
import io
import math
import wave
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from pipeline.data.card import report_lines
from pipeline.data.manifest import SPLITS, Manifest
from pipeline.evaluation.metric import DEFINITIONS, Definition, Score, Scores
from pipeline.report import curves
from pipeline.spec import RunSpec
from pipeline.storage import open_store

MOST_PICTURES, MOST_SOUNDS, MOST_TEXTS, MOST_CHARACTERS = 64, 12, 6, 1600
FAMILIES = {"rnn": "Recurrent language model", "vae": "Variational autoencoder", "gan": "Adversarial network"}
MODALITIES = {"text": "text", "image": "pictures", "audio": "sound"}
HEADLINES = ("nll_nats", "bits_per_char", "nats_per_token", "frechet", "wasserstein")
"""The scores that may stand at the top, in the order of preference."""


def build_report(
    out: Path | None,
    *,
    spec: RunSpec,
    manifest: Manifest | Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    scores: Mapping[str, Score],
    samples: Sequence[Any],
    overview_png: bytes | None = None,
    seconds: Mapping[str, float],
    versions: Mapping[str, Any],
    created: datetime | None = None,
) -> str:
    """The page as HTML, also written whole to `out` where given.

    `history` rows are {"step": n, "train/loss": …}; `samples` raw examples (texts, uint8 `[H, W, C]`, float32
    `[T]`); `overview_png` is shown when there are no samples; `seconds` is by stage, with `total` if known. What
    `Scores` refused is told with its reason. Equal arguments give equal bytes. Raises: StorageError when `out` cannot
    be written.
    """
    facts = manifest.as_dict() if isinstance(manifest, Manifest) else dict(manifest)
    layout = facts["layout"]
    created = created or datetime.now(UTC)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": curves.number, "compact": curves.compact, "whole": _whole, "duration": duration}
    html = environment.get_template("page.html.j2").render(
        spec=spec,
        family=FAMILIES[spec.model.family.kind],
        modality=MODALITIES[layout["modality"]],
        headline=_headline(spec, history, scores, seconds),
        samples=_samples(layout, samples),
        overview=_data_uri("image/png", overview_png) if overview_png and not samples else None,
        scores=[_row(key, score) for key, score in scores.items()],
        refused=sorted(scores.refused.items()) if isinstance(scores, Scores) else [],
        charts=curves.charts_of(history),
        chart_size=(curves.WIDTH, curves.HEIGHT, curves.LEFT, curves.RIGHT, curves.TOP, curves.BOTTOM),
        card=_data_card(facts),
        labels=_labels(facts),
        splits=_splits(facts),
        quarantined=facts["report"].get("quarantined", [])[:10],
        stages=_stages(seconds),
        total=_total(seconds),
        versions=[(name, _plain(value)) for name, value in versions.items()],
        spec_yaml=spec.as_yaml(),
        created=created.strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
    )
    if out is not None:
        open_store(str(out.parent)).write_bytes(html.encode(), out.name)
    return html


# --- samples --------------------------------------------------------------------------------------------------


def _samples(layout: Mapping[str, Any], samples: Sequence[Any]) -> dict[str, Any]:
    modality = layout["modality"]
    if modality == "text":
        texts = [_shortened(str(text)) for text in samples[:MOST_TEXTS]]
        return {"kind": "text", "items": texts, "more": len(samples) - len(texts)}
    if modality == "image":
        pictures = [_picture(picture) for picture in samples[:MOST_PICTURES]]
        return {"kind": "image", "items": pictures, "more": len(samples) - len(pictures)}
    rate = layout["sample_rate_hz"]
    sounds = [_sound(np.asarray(sound, np.float32), rate) for sound in samples[:MOST_SOUNDS]]
    return {"kind": "audio", "items": sounds, "more": len(samples) - len(sounds)}


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS].rstrip() + " …"


def _picture(picture: np.ndarray) -> dict[str, Any]:
    """A picture uint8 `[H, W, C]` as a data URI; small ones keep their pixels when the page enlarges them."""
    buffer = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(buffer, format="PNG")
    return {"uri": _data_uri("image/png", buffer.getvalue()), "small": max(picture.shape[:2]) <= 96}


def _sound(sound: np.ndarray, rate: int) -> dict[str, Any]:
    """A sound float32 `[T]` as a WAV data URI, its outline as an SVG path and its spectrogram as a mask."""
    pcm = np.round(np.clip(np.nan_to_num(sound), -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
    return {
        "uri": _data_uri("audio/wav", buffer.getvalue()),
        "outline": _outline(pcm / 32767),
        "spectrogram": _data_uri("image/png", _spectrogram_mask(pcm / 32767)),
        "seconds": len(sound) / rate,
    }


def _outline(sound: np.ndarray, columns: int = 160) -> str:
    """The loudest and the quietest value of each of `columns` slices, as a closed path in a box of 160 × 40."""
    parts = np.array_split(sound, min(columns, len(sound)))
    x = np.linspace(0, 160, len(parts))
    top = [20 - 19 * float(part.max()) for part in parts]
    bottom = [20 - 19 * float(part.min()) for part in parts]
    upper = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, top, strict=True))
    lower = "L".join(f"{a:.1f} {b + 0.3:.1f}" for a, b in zip(x[::-1], bottom[::-1], strict=True))
    return f"M{upper}L{lower}Z"


def _spectrogram_mask(sound: np.ndarray, columns: int = 160) -> bytes:
    """A spectrogram over 60 dB as the alpha channel of a PNG, for the page to paint in the colour of its theme."""
    window = 256
    padded = np.pad(sound, (0, max(0, window - len(sound))))
    starts = np.linspace(0, len(padded) - window, columns).astype(int)
    frames = np.stack([padded[start : start + window] for start in starts]) * np.hanning(window)
    magnitude = np.abs(np.fft.rfft(frames, axis=1))[:, 1:].T[::-1]  # [128, columns], high frequencies on top
    decibels = 20 * np.log10(np.maximum(magnitude / max(float(magnitude.max()), 1e-9), 1e-3))
    alpha = np.round(255 * (1 + decibels / 60) ** 1.5).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.merge("LA", (Image.new("L", alpha.shape[::-1]), Image.fromarray(alpha))).save(buffer, format="PNG")
    return buffer.getvalue()


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


# --- numbers --------------------------------------------------------------------------------------------------


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


def _row(key: str, score: Score) -> dict[str, Any]:
    name = key.partition("/")[2]
    definition = DEFINITIONS.get(name, Definition(name.replace("_", " ").capitalize(), score.unit, score.better, ""))
    interval = None if score.interval is None else [curves.number(bound) for bound in score.interval]
    return {
        "key": key,
        "title": definition.title,
        "value": curves.number(score.value),
        "unit": score.unit or definition.unit,
        "better": score.better,
        "interval": interval,
        "reading": definition.reading,
        "caution": score.caution,
        "protocol": [(name.replace("_", " "), _plain(value)) for name, value in score.protocol.items()],
    }


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not known"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return curves.number(value)
    text = str(value)
    return text[:12] + "…" if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text) else text


def _whole(value: float) -> str:
    return f"{int(value):,}"


def duration(value: float) -> str:
    """Seconds as a person says them: 8.4 s, 3 min 20 s, 2 h 5 min."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


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


# --- data -----------------------------------------------------------------------------------------------------


def _data_card(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the model was trained on, as pairs for a list."""
    corpus, layout, report = manifest["corpus"], manifest["layout"], manifest["report"]
    source = corpus.get("source") or {}
    where = source.get("path") or source.get("name") or "not known"
    codec = manifest["codec"].get("spec", {})
    shape = " × ".join(f"{extent:,}" for extent in layout["shape"])
    card = [
        ("Source", f"{source.get('kind', 'corpus')}: {where}"),
        ("Licence", corpus.get("licence") or "not stated"),
        ("Codec", f"{codec.get('kind', 'not known')}, {shape} {'tokens' if layout['view'] == 'tokens' else 'values'}"),
    ]
    if layout["view"] == "tokens":
        card.append(("Vocabulary", f"{layout['vocabulary']:,}"))
    if layout.get("sample_rate_hz"):
        card.append(("Sample rate", f"{layout['sample_rate_hz']:,} Hz"))
    if "stages" in report:
        for name, value in report_lines(report):
            if name:
                card.append((name.capitalize(), value))
            else:
                card[-1] = (card[-1][0], f"{card[-1][1]}; {value}")
    card.append(("Split", _split_in_words(manifest.get("split") or {})))
    card.append(("Fingerprint", _plain(corpus.get("fingerprint", "not known"))))
    card.append(("Prepared set", str(manifest["key"])))
    return card


def _split_in_words(split: Mapping[str, Any]) -> str:
    how = {"hash": "by a hash of each record", "given": "as the source gives it", "position": "by position in the text"}
    # Which records are test is then the source's affair, whatever share the spec names.
    shown = ("validation",) if split.get("kind") == "given" else ("validation", "test")
    shares = ", ".join(f"{100 * split[name]:g}% {name}" for name in shown if split.get(name))
    return f"{how.get(split.get('kind', ''), 'not known')}{': ' if shares else ''}{shares}"


def _splits(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of splits."""
    return [
        {
            "name": name,
            "records": entry.get("records", 0),
            "rows": entry.get("rows", 0),
            "characters": entry.get("characters", 0),
        }
        for name, entry in sorted(manifest["splits"].items(), key=lambda item: SPLITS.index(item[0]))
    ]


def _labels(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The training split's labels with their counts, as bars; at most 40."""
    counts: dict[str, int] = dict(manifest["splits"].get("train", {}).get("labels") or {})
    most = max(counts.values(), default=1)
    ordered = sorted(counts.items())[:40]
    return [{"name": name, "count": count, "share": 100 * count / most} for name, count in ordered]
