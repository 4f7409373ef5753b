"""What was found of a model, in words and tables: verdict, health, the gate's decision, nearest neighbours, surprise.

Pure functions of plain values (see each one for their form), giving what the templates show; None without input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.curves import Chart, chart_over, number
from pipeline.report.media import Media

QUESTIONS = {
    "good": ("Is it good?", "Do samples look like held-out examples, and are held-out examples likely?"),
    "varied": ("Is it varied?", "Do samples cover what the held-out examples cover?"),
    "new": ("Is it new?", "Are samples no nearer to the training set than held-out examples are?"),
}
ANSWERS = {"yes": "Yes", "no": "No", "unclear": "Unclear"}
OUTCOMES = {"promote": "Promoted", "hold": "Held", "reject": "Rejected"}
MOST_PAIRS = 12
MOST_TENSORS = 40
MOST_UNKNOWN = 100
MOST_TOKENS = 1500
LONGEST_TOKEN = 24
END = "◼"
NATS_OF_A_LEVEL = 0.75
LEVELS = 8


def verdict_section(verdict: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """The three questions with their answers.

    `verdict` is {"good": {"answer": "yes" | "no" | "unclear", "findings": [sentence, …]}, "varied": …, "new": …}; a
    question that is not in it was not asked.
    """
    if not verdict:
        return None
    return [
        {
            "question": question,
            "meaning": meaning,
            "style": verdict[key]["answer"],
            "answer": ANSWERS[verdict[key]["answer"]],
            "findings": [str(finding) for finding in verdict[key].get("findings", ())],
        }
        for key, (question, meaning) in QUESTIONS.items()
        if key in verdict
    ]


def warnings_section(warnings: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """What the rules of health said of the training; an empty list when they said nothing, None when none were asked.

    `warnings` are [{"title": words, "message": sentence, "step": n, "last_step": n, "times": n, "meaning": sentences,
    "advice": sentences}, …] as `training/health.py` gives them.
    """
    if warnings is None:
        return None
    found = []
    for warning in warnings:
        when = f"at step {warning['step']:,}"
        if warning["times"] > 1:
            when = f"{warning['times']:,} times from step {warning['step']:,} to step {warning['last_step']:,}"
        words = {key: str(warning[key]) for key in ("kind", "title", "message", "meaning", "advice")}
        found.append({**words, "when": when})
    return found


def gate_section(gate: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The decision with the table behind it.

    `gate` is {"outcome": "promote" | "hold" | "reject", "reason": sentence, "rules": [{"kind": word, "score": key,
    "wanted": words, "state": "met" | "not met" | "broken" | "unknown", "words": sentence, "value": value or None,
    "interval": (low, high) or None, "comparison": {"champion": value, "challenger": value, "gain": value, "interval":
    (low, high) or None} or None}, …]}; `value` is the challenger's, of a rule that compares nothing.
    """
    if not gate:
        return None
    rows = []
    for rule in gate.get("rules", ()):
        seen = rule.get("comparison") or {"challenger": rule.get("value")}
        rows.append(
            {
                **{key: rule.get(key) or "" for key in ("kind", "score", "wanted", "state", "words")},
                "style": {"met": "passed", "not met": "failed", "broken": "failed"}.get(rule["state"], ""),
                "champion": _number(seen.get("champion")),
                "challenger": _number(seen.get("challenger")),
                "gain": _number(seen.get("gain")),
                "interval": _interval(seen.get("interval")),
                "own_interval": None if rule.get("comparison") else _interval(rule.get("interval")),
            }
        )
    return {
        "outcome": OUTCOMES[gate["outcome"]],
        "style": {"promote": "yes", "hold": "unclear", "reject": "no"}[gate["outcome"]],
        "reason": gate.get("reason", ""),
        "rows": rows,
    }


def _number(value: float | None) -> str | None:
    return None if value is None else number(float(value))


def _interval(bounds: Sequence[float] | None) -> str | None:
    return f"{number(bounds[0])} to {number(bounds[1])}" if bounds else None


def nearest_section(
    nearest: Sequence[Mapping[str, Any]] | None, layout: Mapping[str, Any], most_bytes: int
) -> dict[str, Any] | None:
    """Samples beside the training examples nearest to them, the nearest pairs first.

    `nearest` is [{"sample": raw, "training": raw, "distance": value, "reference": the distance that a held-out example
    usually has, "held_out_share": the share of held-out examples that are as near or nearer, "origin": where the
    training example came from, "finding": words where the pair is more than near, such as "copy"}, …]; what is not
    known of a pair may be None or absent, except for the first three.
    """
    if not nearest:
        return None
    media = Media(layout, most_bytes)
    ordered = sorted(nearest, key=lambda pair: float(pair["distance"]))
    pairs = []
    for pair in ordered[:MOST_PAIRS]:
        shown = media.show(pair["sample"], 600), media.show(pair["training"], 600)
        if None in shown:
            continue
        share = pair.get("held_out_share")
        pairs.append(
            {
                "sample": shown[0],
                "training": shown[1],
                "distance": number(float(pair["distance"])),
                "reference": _number(pair.get("reference")),
                "share": None if share is None else f"{share:.2%}",
                "origin": pair.get("origin"),
                "finding": pair.get("finding"),
            }
        )
    return {"kind": media.kind, "pairs": pairs, "more": len(ordered) - len(pairs)}


def surprise_section(surprise: Sequence[tuple[str, float | None]] | None) -> dict[str, Any] | None:
    """Tokens with the level, 0 to 8, of their surprise in nats; the scale is the same on every page.

    Nats are None where nothing was predicted; an empty token is the end of a document.
    """
    known = [nats for _, nats in surprise or () if nats is not None]
    if not surprise or not known:
        return None
    shown = surprise[:MOST_TOKENS]
    tokens = [
        {
            "text": (text if len(text) <= LONGEST_TOKEN else text[:LONGEST_TOKEN] + "…") or END,
            "nats": "" if nats is None else f"{nats:.2f} nats",
            "level": 0 if nats is None else max(0, min(LEVELS, round(nats / NATS_OF_A_LEVEL))),
        }
        for text, nats in shown
    ]
    return {
        "tokens": tokens,
        "mean": number(sum(known) / len(known)),
        "count": len(surprise),
        "more": len(surprise) - len(shown),
        "levels": range(LEVELS + 1),
        "most": f"{LEVELS * NATS_OF_A_LEVEL:g}",
    }


def inherited_section(inherited: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a training took over from the model that it began with.

    `inherited` is {"source": name, "summary": words, "new_tokens": [word, …], "new_labels": [word, …], "tensors":
    [{"name": word, "fate": "kept" | "resized" | "new", "how": words}, …]}; tensors that were kept are only counted.
    """
    if not inherited:
        return None
    words = {"resized": "resized", "new": "made new"}
    changed = [
        {"name": tensor["name"], "fate": words[tensor["fate"]], "how": tensor["how"]}
        for tensor in inherited["tensors"]
        if tensor["fate"] in words
    ]
    unknown = {"Tokens": inherited["new_tokens"], "Labels": inherited["new_labels"]}
    return {
        "source": inherited["source"],
        "summary": inherited["summary"],
        "tensors": changed[:MOST_TENSORS],
        "more": max(0, len(changed) - MOST_TENSORS),
        "unknown": [
            {"what": what, "shown": names[:MOST_UNKNOWN], "more": max(0, len(names) - MOST_UNKNOWN)}
            for what, names in unknown.items()
            if names
        ],
    }


def temperature_charts(curve: Mapping[str, Sequence[Sequence[float]]] | None) -> list[Chart]:
    """A chart a score over the temperature of sampling.

    `curve` is {score's name: [(temperature, value) or (temperature, value, low, high), …], …}.
    """
    charts = [chart_over(name, "temperature", points) for name, points in (curve or {}).items()]
    return [chart for chart in charts if chart is not None]
