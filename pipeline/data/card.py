"""The data card: what a corpus held and what became of it, in numbers, for the manifest, the report and the terminal.

The driver describes a selection once; everything in it is a function of the corpus and the spec. `card_text` is what
`atelier prepare` prints.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.layout import Modality
from pipeline.data.manifest import SPLITS
from pipeline.data.parts import Part
from pipeline.data.selection import NO_SIDE, Rows, Selection

EXAMPLES = 5
"""Records named for each reason."""
QUARANTINED = 100
"""Quarantined records named with their reason."""
UNITS: dict[Modality, str] = {"text": "characters", "audio": "samples", "image": "pixels"}


def describe(parts: Sequence[Part], selection: Selection, modality: Modality) -> dict[str, Any]:
    """The manifest's `report`.

    `read`: records; `kept`: what is left of them, pieces counted singly; `stages`: how many are left after each step;
    `dropped` by reason, with `examples`; `quarantined`: the first of them with their reasons; `cleaned`: records that
    each step changed; `personal_data`: what was masked, by kind; `facts`: records by encoding, format, rate …;
    `lengths` of what was kept, in `unit`; `duplicates`: clusters, the largest, examples; `leakage` of a given split.
    """
    rows = selection.rows
    kept = selection.side < NO_SIDE
    counted = _count_columns(parts, rows)
    dropped = counted["dropped"] + Counter(
        {
            "exact duplicate": int(selection.exact.sum()),
            "near duplicate": int(selection.near.sum()),
            "leakage": int(selection.leaked.sum()),
        }
    )
    report: dict[str, Any] = {
        "read": int(rows.first_pieces.sum()),
        "kept": int(kept.sum()),
        "stages": _stages(selection),
        "dropped": {name: count for name, count in sorted(dropped.items()) if count},
        "examples": _examples(parts, selection),
        "quarantined_count": int(rows.failed.sum()),
        "quarantined": [
            {"origin": origin, "reason": reason}
            for origin, reason in values_of(parts, rows, np.flatnonzero(rows.failed)[:QUARANTINED], "origin", "error")
        ],
        "cleaned": _steps(counted["changed"]),
        "personal_data": _kinds(counted["personal"]),
        "facts": _facts(counted["facts"]),
        "unknown_characters": int(rows.numbers["unknown"][kept].sum()),
        "duplicates": _duplicates(parts, selection),
        "leakage": _leakage(parts, selection),
        "notes": list(selection.notes),
    }
    lengths = rows.numbers["length"]
    if modality == "image":
        lengths = rows.numbers["width"].astype(np.int64) * rows.numbers["height"]
    if kept.any() and lengths[kept].any():
        report["lengths"] = {"unit": UNITS[modality], **_summary(lengths[kept])}
    return report


def values_of(parts: Sequence[Part], rows: Rows, chosen: np.ndarray, *names: str) -> list[tuple[Any, ...]]:
    """Columns of a few rows, in their order."""
    found: list[tuple[Any, ...]] = [()] * len(chosen)
    part = rows.part[chosen]
    for place in np.unique(part):
        mine = np.flatnonzero(part == place)
        numbers, back = np.unique(rows.row[chosen[mine]], return_inverse=True)
        table = parts[place].rows(numbers, names)
        values = list(zip(*(table[name].to_pylist() for name in names), strict=True))
        for at, number in zip(mine.tolist(), back.tolist(), strict=True):
            found[at] = values[number]
    return found


def _count_columns(parts: Sequence[Part], rows: Rows) -> dict[str, Counter[str]]:
    """How often each value is in columns of few values; of a record in pieces only the first counts."""
    names = ("dropped", "changed", "personal", "facts")
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    whole = np.flatnonzero(rows.first_pieces)
    for place, part in enumerate(parts):
        mine = rows.row[whole[rows.part[whole] == place]]
        table = part.column_table(names).take(pa.array(mine))
        for name in names:
            for entry in pc.value_counts(pc.drop_null(table[name].combine_chunks())).to_pylist():
                counts[name][entry["values"]] += entry["counts"]
    return counts


def _stages(selection: Selection) -> list[dict[str, Any]]:
    """What is left after each step, pieces counted singly from the step that makes them."""
    rows = selection.rows
    left = rows.alive
    stages = [
        {"stage": "read", "left": int(rows.first_pieces.sum())},
        {"stage": "decoded", "left": int((rows.first_pieces & ~rows.failed).sum())},
        {"stage": "cleaned", "left": int(left.sum())},
    ]
    for name, gone in (
        ("without leakage", selection.leaked),
        ("without exact duplicates", selection.exact),
        ("without near duplicates", selection.near),
    ):
        left = left & ~gone
        stages.append({"stage": name, "left": int(left.sum())})
    return stages


def _examples(parts: Sequence[Part], selection: Selection) -> dict[str, list[dict[str, str]]]:
    """The first origins of each reason for which records were dropped, with the detail where there is one."""
    rows = selection.rows
    found: dict[str, list[dict[str, str]]] = {}
    # The reasons are few; looking at the first thousand dropped rows keeps this bounded on the largest corpus.
    for reason, origin, detail in values_of(
        parts, rows, np.flatnonzero(rows.dropped)[:1000], "dropped", "origin", "detail"
    ):
        if len(found.setdefault(reason, [])) < EXAMPLES:
            found[reason].append({"origin": origin} | ({"detail": detail} if detail else {}))
    for reason, gone in (("exact duplicate", selection.exact), ("near duplicate", selection.near)):
        chosen = np.flatnonzero(gone)[:EXAMPLES]
        origins = values_of(parts, rows, chosen, "origin")
        first = values_of(parts, rows, selection.cluster[chosen], "origin")
        if len(chosen):
            found[reason] = [
                {"origin": one, "detail": f"like {other}"} for (one,), (other,) in zip(origins, first, strict=True)
            ]
    return dict(sorted(found.items()))


def _steps(changed: Counter[str]) -> dict[str, int]:
    steps: Counter[str] = Counter()
    for joined, count in changed.items():
        steps.update(dict.fromkeys(joined.split("+"), count))
    return dict(sorted(steps.items()))


def _kinds(personal: Counter[str]) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for joined, count in personal.items():
        kinds.update({kind: number * count for kind, number in json.loads(joined).items()})
    return dict(sorted(kinds.items()))


def _facts(facts: Counter[str]) -> dict[str, dict[str, int]]:
    tables: dict[str, Counter[str]] = {}
    for joined, count in facts.items():
        for name, value in json.loads(joined).items():
            tables.setdefault(name, Counter())[str(value)] += count
    return {name: dict(table.most_common(20)) for name, table in sorted(tables.items())}


def _summary(values: np.ndarray) -> dict[str, float]:
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "mean": round(float(values.mean()), 3),
        "p95": float(np.quantile(values, 0.95)),
        "max": int(values.max()),
    }


def _duplicates(parts: Sequence[Part], selection: Selection) -> dict[str, Any]:
    """Clusters of exact and near duplicates among what was cleaned, whether or not any were dropped."""
    alive = np.flatnonzero(selection.rows.alive)
    labels, counts = np.unique(selection.cluster[alive], return_counts=True)
    several = labels[counts > 1]
    largest = several[np.argsort(-counts[counts > 1], kind="stable")][:EXAMPLES]
    examples = []
    for label in largest:
        members = alive[selection.cluster[alive] == label]
        origins = [origin for (origin,) in values_of(parts, selection.rows, members[:EXAMPLES], "origin")]
        examples.append({"size": len(members), "origins": origins})
    return {
        "clusters": len(several),
        "records_in_clusters": int(counts[counts > 1].sum()),
        "largest": int(counts.max()) if len(counts) else 0,
        "near_pairs": len(selection.pairs),
        "examples": examples,
    }


def _leakage(parts: Sequence[Part], selection: Selection) -> dict[str, Any]:
    """What a given split parts, with origins for its examples."""
    alive = np.flatnonzero(selection.rows.alive)
    told = selection.leakage.as_dict()
    pairs = [values_of(parts, selection.rows, alive[list(pair)], "origin") for pair in selection.leakage.examples]
    return {**told, "examples": [[origin for (origin,) in pair] for pair in pairs]}


# --- telling --------------------------------------------------------------------------------------------------


def card_text(manifest: Mapping[str, Any]) -> str:
    """The card of a manifest (as a dict), for a terminal."""
    return "\n".join(f"{name:<20} {value}".rstrip() for name, value in card_lines(manifest))


def card_lines(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The card as names and values; a name is empty where its value goes on over several lines."""
    corpus, report, layout = manifest["corpus"], manifest["report"], manifest["layout"]
    source = corpus["source"]
    yield "prepared set", manifest["key"]
    yield "source", f"{source['kind']} {source.get('path') or source.get('name') or ''}"
    yield "licence", corpus["licence"]
    yield "fingerprint", corpus["fingerprint"]
    values = "tokens" if layout["view"] == "tokens" else "values"
    vocabulary = f" of {layout['vocabulary']:,}" if layout["view"] == "tokens" else ""
    yield (
        "codec",
        f"{manifest['codec']['spec']['kind']}: {' × '.join(map(str, layout['shape']))} {values}{vocabulary}",
    )
    yield from report_lines(report)
    for name in SPLITS:
        entry = manifest["splits"][name]
        text = f", {entry['characters']:,} characters" if entry["characters"] else ""
        shards = entry["shards"]
        megabytes = sum(shard["bytes"] for shard in shards) / 2**20
        yield (
            name,
            f"{entry['rows']:,} examples of {entry['records']:,} records{text}; "
            f"{len(shards)} shards of {megabytes:.1f} MiB together",
        )
    labels = manifest["splits"]["train"]["labels"]
    if labels:
        yield from _lines("labels (train)", list(labels.items())[:20])
    if prompts := manifest["splits"]["train"].get("prompts"):
        cut = f", {prompts['cut']:,} of them cut to data.prompt.length" if prompts["cut"] else ""
        yield "prompts (train)", f"{prompts['given']:,}, {prompts['distinct']:,} different{cut}"
        yield from _lines("", list(zip(layout["prompts"], layout["prompt_counts"], strict=True))[:20])


def report_lines(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What `describe` found, as names and values; a name is empty where its value goes on."""
    yield from _lines("left after", ((stage["stage"], stage["left"]) for stage in report["stages"]))
    yield from _lines("dropped", report["dropped"].items())
    for reason, examples in report["examples"].items():
        for example in examples[:2]:
            yield "", f"{reason}: {example['origin']}{': ' + example['detail'] if 'detail' in example else ''}"
    yield "quarantined", f"{report['quarantined_count']:,}"
    for item in report["quarantined"][:EXAMPLES]:
        yield "", f"{item['origin']}: {item['reason']}"
    yield from _lines("changed by", report["cleaned"].items())
    yield from _lines("personal data masked", report["personal_data"].items())
    for name, table in report["facts"].items():
        yield from _lines(name.replace("_", " "), table.items())
    if "lengths" in report:
        lengths = report["lengths"]
        figures = ", ".join(f"{name} {lengths[name]:,.6g}" for name in ("min", "median", "mean", "p95", "max"))
        yield f"length, {lengths['unit']}", figures
    if report["unknown_characters"]:
        yield "unknown characters", f"{report['unknown_characters']:,}"
    duplicates = report["duplicates"]
    yield (
        "duplicates",
        f"{duplicates['records_in_clusters']:,} records in {duplicates['clusters']:,} clusters, "
        f"the largest of {duplicates['largest']:,}",
    )
    for example in duplicates["examples"]:
        yield "", f"{example['size']:,}: {', '.join(example['origins'])}"
    leakage = report["leakage"]
    if leakage["units"]:
        pairs = {**leakage["near_rows"], **{f"{pair} (group)": n for pair, n in leakage["group_rows"].items()}}
        counts = ", ".join(f"{count:,} {pair}" for pair, count in pairs.items() if count)
        yield "leakage", f"{leakage['units']:,} clusters or groups lie on several sides of the given split: {counts}"
        for one, other in leakage["examples"][:EXAMPLES]:
            yield "", f"{one} and {other}"
    for note in report["notes"]:
        yield "note", note


def _lines(name: str, pairs: Any) -> Iterator[tuple[str, str]]:
    values = ", ".join(f"{value:,} {what}" for what, value in pairs)
    yield name, values or "none"
