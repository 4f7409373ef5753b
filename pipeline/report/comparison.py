"""The page of a comparison: several runs side by side, as one HTML file like the page of a run.

Plain values in, a page out. Scores are ranked only among runs that took them in the same way; where the protocols
differ the page says in what, and ranks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import ComparisonError
from pipeline.evaluation.metric import Score
from pipeline.reading import flatten
from pipeline.report import curves
from pipeline.report.page import date_in_words, samples_section
from pipeline.report.rendering import FAMILIES, MODALITIES, definition_of, duration, plain, protocol_facts, render
from pipeline.spec import RunSpec

COUNTS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six", 7: "Seven", 8: "Eight"}
MOST_RUNS = max(COUNTS)
MOST_DIFFERENCES = 200
SAMPLE_BYTES = 8_000_000
"""Of all runs together, each having an equal share."""
MOST_BYTES = 16_000_000
MOST_SAMPLES, SAMPLE_CHARACTERS = {"image": 30, "audio": 3, "text": 2}, 600
PREPARED = "prepared set"
EXTREME = {"lower": "lowest", "higher": "highest"}
NOT_OF_THE_WAY = ("seed",)
"""Parts of a protocol in which two scores may differ and still be taken in the same way."""


@dataclass(frozen=True)
class RunFacts:
    """What a comparison shows of a run. `label` is its name on the page, `prepared` the key of its data, `layout` that
    of its examples; `history`, `scores`, `samples`, `asked` and `seconds` as `build_report` takes them. What a run does
    not have (one that goes on still, a model without its run) is empty."""

    label: str
    spec: RunSpec
    prepared: str
    layout: Mapping[str, Any]
    history: Sequence[Mapping[str, float]] = ()
    scores: Mapping[str, Score] = field(default_factory=dict)
    samples: Sequence[Any] = ()
    asked: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    model_uri: str | None = None


def build_comparison(out: Path | None, runs: Sequence[RunFacts], created: datetime | None = None) -> str:
    """The page as HTML, also written whole to `out` where given; smaller than `MOST_BYTES`.

    Equal arguments give equal bytes. Raises: ComparisonError on fewer than two or more than `MOST_RUNS` runs or on one
    label twice, StorageError when `out` cannot be written.
    """
    labels = [run.label for run in runs]
    if not 2 <= len(runs) <= MOST_RUNS:
        raise ComparisonError(f"{len(runs)} runs: a comparison is of 2 to {MOST_RUNS}; more cannot be told apart")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ComparisonError(f"the run {twice!r} is named twice; name every run once")
    each = SAMPLE_BYTES // len(runs)
    samples = [
        samples_section(run.layout, run.samples, each, MOST_SAMPLES, SAMPLE_CHARACTERS, run.asked) for run in runs
    ]
    keys = list(dict.fromkeys(key for run in runs for key in run.scores))
    return render(
        "comparison.html.j2",
        out,
        title=" and ".join(labels) if len(labels) == 2 else f"{len(labels)} runs",
        heading=f"{COUNTS[len(labels)]} runs side by side",
        runs=[_head(run) for run in runs],
        scores=[_forest(key, runs) for key in keys],
        charts=curves.overlaid({run.label: run.history for run in runs}),
        samples=list(zip(labels, samples, strict=True)) if any(one["items"] for one in samples) else [],
        differences=spec_differences(runs),
        created=date_in_words(created or datetime.now(UTC)),
    )


def _head(run: RunFacts) -> dict[str, Any]:
    steps = max((int(row.get("step", 0)) for row in run.history), default=0)
    total = run.seconds.get("total")
    kind = f"{FAMILIES[run.spec.model.family.kind]} of {MODALITIES[run.layout['modality']]}"
    lines = [kind, f"seed {run.spec.seed}" + (f", {steps:,} steps" if steps else "")]
    if total:
        lines.append(f"{duration(total)} from start to report")
    if run.model_uri:
        lines.append(run.model_uri)
    lines.append(f"data {run.prepared}")
    return {"label": run.label, "lines": lines}


# --- scores ---------------------------------------------------------------------------------------------------


def protocol_differences(scores: Sequence[tuple[RunFacts, Score]]) -> list[tuple[str, list[str]]]:
    """In what the ways differ in which scores of one key were taken: the part's name with its value for each run.

    Empty when all were taken in the same way. The seed is no part of it; the data is.
    """
    facts = []
    for run, score in scores:
        ours = {name: value for name, value in score.protocol.items() if name not in NOT_OF_THE_WAY}
        facts.append({**dict(protocol_facts(ours)), "unit": score.unit, PREPARED: run.prepared})
    names = list(dict.fromkeys(name for one in facts for name in one))
    found = [(name, [one.get(name, "not stated") for one in facts]) for name in names]
    differing = [(name, values) for name, values in found if len(set(values)) > 1]
    same = all(scores[0][1].comparable_with(score) for _, score in scores)
    # What `comparable_with` tells apart must be said even where it reads the same.
    return differing if differing or same else [("protocol", [plain(score.protocol) for _, score in scores])]


def _forest(key: str, runs: Sequence[RunFacts]) -> dict[str, Any]:
    """A score of all runs that have it: values and intervals on one axis, and which is best where that can be said."""
    present = [(number, run, run.scores[key]) for number, run in enumerate(runs) if key in run.scores]
    differing = protocol_differences([(run, score) for _, run, score in present])
    bounds = [bound for _, _, score in present for bound in (score.interval or (score.value, score.value))]
    low, high = min(bounds), max(bounds)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    best, note = (None, "") if differing or len(present) < 2 else _best(present)
    definition = definition_of(key, present[0][2])
    rows = []
    for number, run, score in present:
        interval = score.interval
        rows.append(
            {
                "label": run.label,
                "style": f"run{number}",
                "value": curves.number(score.value),
                "interval": [curves.number(bound) for bound in interval] if interval else None,
                "at": at(score.value),
                "from": at(interval[0]) if interval else None,
                "width": round(at(interval[1]) - at(interval[0]), 2) if interval else None,
                "best": number == best,
            }
        )
    return {
        "key": key,
        "title": definition.title,
        "unit": present[0][2].unit or definition.unit,
        "better": present[0][2].better,
        "rows": rows,
        "missing": [run.label for run in runs if key not in run.scores],
        "differing": differing,
        "note": note,
    }


def _best(present: Sequence[tuple[int, RunFacts, Score]]) -> tuple[int | None, str]:
    """Which run is best, by its number, if the score says so at all, and what is to be said of it."""
    better = present[0][2].better
    if better is None:
        return None, ""
    sign = 1.0 if better == "lower" else -1.0
    ordered = sorted(present, key=lambda item: sign * item[2].value)
    first, others = ordered[0], ordered[1:]
    if any(score.interval is None for _, _, score in present):
        return None, "Without intervals of all the runs none is called the best."
    assert first[2].interval is not None
    edge = max(sign * bound for bound in first[2].interval)
    near = [
        run.label
        for _, run, score in others
        if score.interval and min(sign * bound for bound in score.interval) <= edge
    ]
    if near:
        return None, f"The interval of {first[1].label}, the {EXTREME[better]} value, meets that of {', '.join(near)}."
    return first[0], ""


# --- spec -----------------------------------------------------------------------------------------------------


def spec_differences(runs: Sequence[RunFacts]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The keys of the spec in which runs differ, each with the runs' labels and values, at most `MOST_DIFFERENCES`."""
    flat = [flatten(run.spec.as_dict()) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    differing = []
    for key in keys:
        values = [repr(one[key]) if key in one else "–" for one in flat]
        if len(set(values)) > 1:
            shown = [str(one[key]) if key in one else "–" for one in flat]
            differing.append((key, list(zip([run.label for run in runs], shown, strict=True))))
    return differing[:MOST_DIFFERENCES]
