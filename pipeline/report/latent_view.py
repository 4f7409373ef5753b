"""A latent space as a page shows it: walks with sliders, the share of each dimension, and a map in SVG.

Pure functions of a `LatentView`; the frames of all walks share one allowance of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.latent import LatentView, Map, Usage, Walk
from pipeline.report.curves import number
from pipeline.report.media import Media

MAP_WIDTH, MAP_HEIGHT, MARGIN = 520.0, 400.0, 14.0
MOST_COLOURS = 10
"""Labels with a colour of their own; of more, the commonest."""
MOST_FRAME_CHARACTERS = 240


def latent_section(view: LatentView | None, layout: Mapping[str, Any], most_bytes: int) -> dict[str, Any] | None:
    """What the template shows of a latent space, with at most `most_bytes` of media; None without one."""
    if view is None:
        return None
    media = Media(layout, most_bytes)
    groups: list[dict[str, Any]] = [
        {
            "title": "From the middle of the prior",
            "lead": "Every other dimension is zero, where the prior is densest; the sliders start to the right of it.",
            "example": None,
            "walks": _walks(view.from_prior, media, view.usage),
        },
        {
            "title": "From a held-out example",
            "lead": "Every other dimension keeps the example's own value; each slider starts nearest to where it lies.",
            "example": media.show(view.example, MOST_FRAME_CHARACTERS) if view.from_example else None,
            "walks": _walks(view.from_example, media, view.usage),
        },
    ]
    ways = _walks(view.interpolations, media, None)
    return {
        "kind": media.kind,
        "size": view.latent_size,
        "examples": view.num_examples,
        "active": len(view.usage.active) if view.usage else None,
        "nats": number(sum(view.usage.kl_nats)) if view.usage else None,
        "dimensions": _bars(view.usage) if view.usage else [],
        "groups": [group for group in groups if group["walks"]],
        "interpolations": ways,
        "map": latent_map(view.map) if view.map is not None else None,
        "left_out": media.left_out,
    }


def _walks(walks: Sequence[Walk], media: Media, usage: Usage | None) -> list[dict[str, Any]]:
    """The walks that fit whole: one with frames missing would move in jumps that the model does not make."""
    shown = []
    for walk in walks:
        frames = [media.show(frame, MOST_FRAME_CHARACTERS) for frame in walk.frames]
        ends = [media.show(end, MOST_FRAME_CHARACTERS) for end in walk.ends or ()]
        if None in frames or None in ends:
            continue
        note = ""
        if usage is not None:
            note = f"{number(usage.kl_nats[int(walk.title.rpartition(' ')[2])])} nats"
        places = [_deviations(at) if usage is not None else f"{at:.0%}" for at in walk.positions]
        shown.append(
            {"title": walk.title, "note": note, "places": places, "frames": frames, "ends": ends, "start": walk.start}
        )
    return shown


def _deviations(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _bars(usage: Usage) -> list[dict[str, Any]]:
    """The dimensions, the largest KL first, each as a share of the largest; at most 64."""
    most = max(max(usage.kl_nats), 1e-9)
    active = set(usage.active)
    return [
        {
            "dimension": dimension,
            "nats": number(usage.kl_nats[dimension]),
            "share": max(0.0, 100 * usage.kl_nats[dimension] / most),
            "active": dimension in active,
        }
        for dimension in usage.order[:64]
    ]


def latent_map(found: Map) -> dict[str, Any]:
    """Paths of round dots, one a label; both axes have one scale, so that distances mean what they are."""
    points = found.points.tolist()
    xs, ys = [x for x, _ in points], [y for _, y in points]
    scale = min(
        (MAP_WIDTH - 2 * MARGIN) / max(max(xs) - min(xs), 1e-9),
        (MAP_HEIGHT - 2 * MARGIN) / max(max(ys) - min(ys), 1e-9),
    )
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    placed = [(MAP_WIDTH / 2 + (x - middle[0]) * scale, MAP_HEIGHT / 2 - (y - middle[1]) * scale) for x, y in points]
    names = sorted({label for label in found.labels if label}, key=lambda name: (-found.labels.count(name), name))
    coloured = sorted(names[:MOST_COLOURS])
    groups = []
    for name in [*coloured, None]:
        dots = [
            place
            for place, label in zip(placed, found.labels, strict=True)
            if label == name or (name is None and label not in coloured)
        ]
        if dots:
            groups.append(
                {
                    "name": name or ("other labels" if coloured else ""),
                    "style": f"hue{coloured.index(name)}" if name else "hueless",
                    "count": len(dots),
                    "path": "".join(f"M{x:.1f} {y:.1f}h0" for x, y in dots),
                    # The median, not the mean: the name stands where most of its dots are.
                    "at": [sorted(axis)[len(axis) // 2] for axis in zip(*dots, strict=True)] if name else None,
                }
            )
    return {
        "width": MAP_WIDTH,
        "height": MAP_HEIGHT,
        "groups": groups,
        "labelled": bool(coloured),
        "explained": [f"{100 * share:.0f}%" for share in found.explained],
    }
