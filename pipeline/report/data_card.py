"""The corpus as a page tells of it: what the model learned from, how it was split, and what was left out.

Pure functions of a manifest as a dict, giving pairs and rows for the template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.card import report_lines
from pipeline.data.manifest import SPLITS
from pipeline.report.rendering import plain


def data_card(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
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
    card.append(("Fingerprint", plain(corpus.get("fingerprint", "not known"))))
    card.append(("Prepared set", str(manifest["key"])))
    return card


def _split_in_words(split: Mapping[str, Any]) -> str:
    how = {"hash": "by a hash of each record", "given": "as the source gives it", "position": "by position in the text"}
    # Which records are test is then the source's affair, whatever share the spec names.
    shown = ("validation",) if split.get("kind") == "given" else ("validation", "test")
    shares = ", ".join(f"{100 * split[name]:g}% {name}" for name in shown if split.get(name))
    return f"{how.get(split.get('kind', ''), 'not known')}{': ' if shares else ''}{shares}"


def split_rows(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def label_bars(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The training split's labels with their counts, as bars; at most 40."""
    counts: dict[str, int] = dict(manifest["splits"].get("train", {}).get("labels") or {})
    most = max(counts.values(), default=1)
    ordered = sorted(counts.items())[:40]
    return [{"name": name, "count": count, "share": 100 * count / most} for name, count in ordered]
