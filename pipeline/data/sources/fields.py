"""Rows with fields: what the label, the group, the prompt and the split of a row are, and the text of a dialogue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.data.records import Record, make_record
from pipeline.spec import FieldSource

SPLITS = {
    "train": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
"""What a row may say of its split, in any case."""


class RowError(ValueError):
    """Why a row has no record."""


def told_by_row(source: FieldSource, row: Mapping[str, Any]) -> dict[str, Any]:
    """Label, group, prompt and split of a row. Raises: RowError when its split is none."""
    told: dict[str, Any] = {
        "label": _word(row.get(source.label_field)) if source.label_field else None,
        "group": _word(row.get(source.group_field)) if source.group_field else None,
        "prompt": _word(row.get(source.prompt_field)) if source.prompt_field else None,
        "split": None,
    }
    if source.split_field:
        value = row.get(source.split_field)
        told["split"] = SPLITS.get(value.strip().lower()) if isinstance(value, str) else None
        if told["split"] is None:
            raise RowError(
                f"{source.split_field!r} is {value!r}; data.source.split_field says train, validation (or valid, val, "
                "dev) or test"
            )
    return told


def row_record(
    source: FieldSource, row: Mapping[str, Any], payload: Any, origin: str, name: str, index: int, **facts: Any
) -> Record:
    """The record of a row; where what it says of itself is wrong, with an error."""
    place: dict[str, Any] = {"name": name, "index": index, "facts": facts}
    try:
        return make_record(origin, payload, **told_by_row(source, row), **place)
    except RowError as wrong:
        return make_record(origin, payload, error=str(wrong), **place)


def render_turns(turns: Any) -> str:
    """A dialogue, a list of `{speaker, text}`, as `<|speaker|>text` a turn, joined by nothing.

    A speaker is one word, in lower case. A `<|` in what is said becomes `< |`, so that nobody can say a role token.

    Raises: RowError when a turn is not so.
    """
    if not isinstance(turns, list) or not turns:
        raise RowError("no turns: a dialogue is a list of {speaker, text}")
    rendered = []
    for number, turn in enumerate(turns, start=1):
        speaker = turn.get("speaker") if isinstance(turn, Mapping) else None
        text = turn.get("text") if isinstance(turn, Mapping) else None
        if not isinstance(speaker, str) or not re.fullmatch(r"\w+", speaker.strip()):
            raise RowError(f"turn {number}: the speaker is {speaker!r}, not a word")
        if not isinstance(text, str):
            raise RowError(f"turn {number}: the text is {text!r}, not a string")
        rendered.append(f"<|{speaker.strip().lower()}|>{without_roles(text)}")
    return "".join(rendered)


def without_roles(text: str) -> str:
    """What is said in a turn, so that it holds no role token."""
    return text.replace("<|", "< |")


def _word(value: Any) -> str | None:
    """A value as a label; lone surrogates, which JSON can write and UTF-8 cannot, become question marks."""
    return None if value is None else str(value).encode("utf-8", "replace").decode("utf-8")
