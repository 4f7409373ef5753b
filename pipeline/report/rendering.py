"""The templates of the pages: how they are loaded, and how numbers, durations and facts are written in them.

The style, the script and every section are files beside this one, put inline: a page makes no request.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from pipeline.evaluation.definitions import DEFINITIONS
from pipeline.evaluation.metric import Definition, Score
from pipeline.report import curves
from pipeline.storage import open_store

FAMILIES = {"rnn": "Recurrent language model", "vae": "Variational autoencoder", "gan": "Adversarial network"}
MODALITIES = {"text": "text", "image": "pictures", "audio": "sound"}
CHART_SIZE = (curves.WIDTH, curves.HEIGHT, curves.LEFT, curves.RIGHT, curves.TOP, curves.BOTTOM)


def render(template: str, out: Path | None, **values: Any) -> str:
    """The page as HTML, everything from data escaped; also written whole to `out` where given.

    Raises: StorageError when `out` cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": curves.number, "compact": curves.compact, "whole": whole, "duration": duration}
    html = environment.get_template(template).render(chart_size=CHART_SIZE, **values)
    if out is not None:
        open_store(str(out.parent)).write_bytes(html.encode(), out.name)
    return html


def definition_of(key: str, score: Score) -> Definition:
    """What the score under `key` (`test/frechet`) is called and how it is read, as far as it is known."""
    name = key.rpartition("/")[2]
    return DEFINITIONS.get(name, Definition(name.replace("_", " ").capitalize(), score.unit, score.better, ""))


def score_row(key: str, score: Score) -> dict[str, Any]:
    """A score as the template shows it: all that is needed to believe it."""
    definition = definition_of(key, score)
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
        "protocol": protocol_facts(score.protocol),
    }


def protocol_facts(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A protocol as pairs of words; one within it is laid flat."""
    facts: list[tuple[str, str]] = []
    for name, value in protocol.items():
        if isinstance(value, Mapping):
            facts += [(f"{name} {inner}".replace("_", " "), plain(one)) for inner, one in value.items()]
        else:
            facts.append((name.replace("_", " "), plain(value)))
    return facts


def plain(value: Any) -> str:
    """A value of JSON as a person reads it; of a sha256 the first digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not known"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return curves.number(value)
    text = str(value)
    return text[:12] + "…" if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text) else text


def whole(value: float) -> str:
    return f"{int(value):,}"


def duration(value: float) -> str:
    """Seconds as a person says them: 8.4 s, 3 min 20 s, 2 h 5 min."""
    if value < 9.95:
        return f"{value:.1f} s"
    rounded = round(value)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s" if rounded % 60 else f"{rounded // 60} min"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"
