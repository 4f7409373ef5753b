"""Curves as inline SVG: points, a smoothed line, and a linear or a logarithmic axis as fits the values.

Pure Python; turns the rows of runs' histories, or a score over a setting, into strings of SVG paths for the templates.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 8.0, 10.0, 24.0
MOST_POINTS = 300
MOST_CHARTS = 40
LOG_FROM = 30.0
"""The axis is logarithmic when the largest value is at least this many times the smallest, all being positive."""
SCHEDULES = ("lr", "learning_rate", "beta")
"""Settings that a schedule moves, down to nothing: always on a linear axis."""
MACHINE = ("second", "lr", "learning_rate", "data_wait_share", "peak_memory", "mfu")
"""What says more of the machine than of the model."""
SERIES = ("train", "validation", "test", "health")


@dataclass(frozen=True)
class Tick:
    """A grid line at pixel `at` with its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One series: `thin` is the path of what was recorded, `path` that of its smoothed form (the same when it is
    smooth already or short), `band` the closed path between two bounds; `points` are (x pixel, y pixel, x, value as
    text) for the pointer. `style` is its class in the style sheet."""

    series: str
    style: str
    path: str
    thin: str | None
    band: str | None
    points: list[tuple[float, float, float, str]]
    last: str


@dataclass(frozen=True)
class Chart:
    """A picture of one quantity over `over`: training steps, or a setting."""

    key: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    logarithmic: bool
    over: str = "step"


Points = Mapping[float, float]


def charts_of(history: Sequence[Mapping[str, float]]) -> list[Chart]:
    """A chart for every quantity that was recorded twice or more; `train/x` and `validation/x` share one.

    What is not finite is left out. Losses come first, settings of the machine last; at most `MOST_CHARTS`.
    """
    found: dict[str, dict[str, dict[float, float]]] = {}
    for key, points in _series_of(history).items():
        series, _, name = key.partition("/")
        found.setdefault(name, {})[series] = points
    charts = [
        _chart(name, {key: series[key] for key in SERIES if key in series}, smoothed=("train",))
        for name, series in found.items()
        if max(len(points) for points in series.values()) > 1
    ]
    return sorted(charts, key=lambda chart: (_importance(chart), chart.key))[:MOST_CHARTS]


def overlaid(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Chart]:
    """A chart for every quantity that two or more runs recorded twice or more, a line a run (by its label).

    The nth run has the style `run{n}`. Validation comes before training, and losses first; at most `MOST_CHARTS`.
    """
    styles = {label: f"run{number}" for number, label in enumerate(histories)}
    found: dict[str, dict[str, dict[float, float]]] = {}
    for label, history in histories.items():
        for key, points in _series_of(history).items():
            if len(points) > 1:
                found.setdefault(key, {})[label] = points
    charts = [
        (key, _chart(key.replace("/", " "), series, styles=styles, smoothed=series if key.startswith("train/") else ()))
        for key, series in found.items()
        if len(series) > 1
    ]

    def place(item: tuple[str, Chart]) -> tuple[int, int, str]:
        split, _, name = item[0].partition("/")
        machine = any(word in name for word in MACHINE)
        return (3 if machine else 0 if name == "loss" else 1, split == "train", name)

    return [chart for _, chart in sorted(charts, key=place)][:MOST_CHARTS]


def chart_over(name: str, over: str, points: Sequence[Sequence[float]]) -> Chart | None:
    """A score over a setting, from points (setting, value) or (setting, value, low, high): its line, and its interval
    as a band. None when fewer than two are finite."""
    finite = sorted(tuple(point) for point in points if all(math.isfinite(value) for value in point))
    if len(finite) < 2:
        return None
    bounds = {point[0]: (point[2], point[3]) for point in finite if len(point) == 4}
    return _chart(name, {name: {p[0]: p[1] for p in finite}}, styles={name: "train"}, over=over, bounds=bounds)


def _series_of(history: Sequence[Mapping[str, float]]) -> dict[str, dict[float, float]]:
    """The finite points of each `train/…`, `validation/…` or `test/…` key, by step."""
    found: dict[str, dict[float, float]] = {}
    for row in history:
        step = int(row.get("step", 0))
        for key, value in row.items():
            series, slash, _ = key.partition("/")
            if slash and series in SERIES and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(key, {})[step] = float(value)
    return found


def _importance(chart: Chart) -> int:
    validated = any(line.series == "validation" for line in chart.lines)
    if chart.key == "loss":
        return 0
    if validated:
        return 1
    return 3 if any(word in chart.key for word in MACHINE) else 2


def _chart(
    name: str,
    series: Mapping[str, Points],
    *,
    styles: Mapping[str, str] | None = None,
    smoothed: Collection[str] = (),
    over: str = "step",
    bounds: Mapping[float, tuple[float, float]] | None = None,
) -> Chart:
    """A chart of `series` by name, in their order; the names are the styles where none are given."""
    bounds = bounds or {}
    recorded = {key: _thinned(sorted(points.items())) for key, points in series.items()}
    values = [value for points in recorded.values() for _, value in points]
    values += [bound for both in bounds.values() for bound in both]
    steps = [step for points in recorded.values() for step, _ in points]
    first, last = min(steps), max(steps)
    if 0 < first < 0.05 * last:
        first = 0
    low, high = min(values), max(values)
    # The lower end of an interval may touch nothing, which a logarithm cannot.
    logarithmic = low > 0 and high / low >= LOG_FROM and not any(word in name for word in SCHEDULES)
    if not logarithmic and over == "step":
        low, high = _without_the_start(recorded, first, last, low, high)
    y_values = _log_ticks(low, high) if logarithmic else _ticks(low, high, 5)
    if logarithmic:
        bottom, top = math.log(low), math.log(high)
        margin = 0.04 * (top - bottom)
        bottom, top = bottom - margin, top + margin
    else:
        bottom, top = min(low, y_values[0]), max(high, y_values[-1])
        if top == bottom:
            bottom, top = bottom - 1, top + 1

    def x_of(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / ((last - first) or 1)

    def y_of(value: float) -> float:
        share = ((math.log(value) if logarithmic else value) - bottom) / (top - bottom)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    def path_of(points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{x_of(step):.1f} {y_of(value):.1f}" for step, value in points)

    lines = []
    for key, points in recorded.items():
        smooth = _smoothed(points) if key in smoothed else points
        lower = [(step, bounds[step][0]) for step, _ in points if step in bounds]
        upper = [(step, bounds[step][1]) for step, _ in points if step in bounds]
        lines.append(
            Line(
                series=key,
                style=(styles or {}).get(key, key),
                path=path_of(smooth),
                # Several runs over each other are told apart by their smoothed lines alone.
                thin=path_of(points) if smooth is not points and styles is None else None,
                band=path_of([*upper, *reversed(lower)]) + "Z" if len(lower) > 1 else None,
                points=[(round(x_of(s), 1), round(y_of(v), 1), s, number(v)) for s, v in points],
                last=number(smooth[-1][1]),
            )
        )
    x_ticks = [Tick(x_of(step), thousands(step, last)) for step in _ticks(first, last, 4) if first <= step <= last]
    y_ticks = [Tick(y_of(value), thousands(value, max(map(abs, y_values)))) for value in y_values]
    return Chart(name, lines, x_ticks, y_ticks, logarithmic, over)


def _without_the_start(
    recorded: Mapping[str, Sequence[tuple[float, float]]], first: float, last: float, low: float, high: float
) -> tuple[float, float]:
    """The range of the axis: of all values or, where the first 8% of the steps would flatten what follows, of the rest
    with room for the fall before it."""
    from_step = first + 0.08 * (last - first)
    later = [value for points in recorded.values() for step, value in points if step >= from_step]
    if len(later) < 20:
        return low, high
    later_low, later_high = min(later), max(later)
    room = 0.6 * (later_high - later_low)
    if high - low <= 2 * (later_high - later_low) or room == 0:
        return low, high
    return max(low, later_low - room), min(high, later_high + room)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points, each the mean of its neighbours; the first and the last stay."""
    if len(points) <= MOST_POINTS:
        return points
    kept = [points[0]]
    inner, count = points[1:-1], MOST_POINTS - 2
    for part in range(count):
        chosen = inner[part * len(inner) // count : (part + 1) * len(inner) // count]
        kept.append((chosen[len(chosen) // 2][0], math.fsum(value for _, value in chosen) / len(chosen)))
    return [*kept, points[-1]]


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A running mean over about a thirtieth of the points each way; the same list when few or smooth."""
    reach = len(points) // 30
    if reach < 1:
        return points
    values = [value for _, value in points]
    spread = max(values[len(values) // 5 :]) - min(values[len(values) // 5 :])
    jitter = math.fsum(abs(b - a) for a, b in zip(values[:-1], values[1:], strict=True)) / (len(values) - 1)
    if jitter < 0.02 * spread:
        return points
    smooth = []
    for i, (step, _) in enumerate(points):
        near = min(reach, i, len(points) - 1 - i)
        window = values[i - near : i + near + 1]
        smooth.append((step, math.fsum(window) / len(window)))
    return smooth


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that span `low` to `high`."""
    # A difference below the smallest normal number has no tenth.
    if high - low < sys.float_info.min * 100:
        return [low]
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(multiple * unit for multiple in (1, 2, 2.5, 5, 10) if multiple * unit >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 or only powers of ten between `low` and `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**power for power in range(first, last + 1) for m in multiples]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 6:
            break
    return ticks[:: max(1, len(ticks) // 6)] or [low, high]


def number(value: float) -> str:
    """A value with about four significant digits."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        return _signed(f"{value:.3g}")
    if float(value).is_integer():
        return _signed(f"{value:,.0f}")
    return _signed(f"{value:,.{max(0, min(6, 3 - math.floor(math.log10(size))))}f}")


def thousands(value: float, largest: float) -> str:
    """`compact`, with every text of an axis in thousands when its largest is."""
    return _signed(f"{value / 1e3:g}k") if 1e4 <= largest < 1e6 and value else compact(value)


def compact(value: float) -> str:
    """A short text for an axis: 25k, 0.01, 1e-5."""
    size = abs(value)
    if size >= 1e6:
        return _signed(f"{value / 1e6:g}M")
    if size >= 1e4:
        return _signed(f"{value / 1e3:g}k")
    if size and size < 1e-3:
        return _signed(f"{value:.2g}".replace("e-0", "e-"))
    return _signed(f"{value:.6g}")


def _signed(text: str) -> str:
    """With a minus sign instead of a hyphen in front."""
    return "\N{MINUS SIGN}" + text[1:] if text.startswith("-") else text
