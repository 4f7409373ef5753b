"""Reading a YAML file into a validated tree, with every mistake at once and what would be right.

Specs, campaigns and schedules are read through here. A mistake is told with its dotted path, the value seen, what
is allowed and the nearest right key.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import SpecError

Model = TypeVar("Model", bound=BaseModel)

Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """A part of what is read: unknown keys are mistakes, and nothing changes after it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PlainLoader(yaml.SafeLoader):
    """Safe YAML in which nothing but true and false is a truth, as in YAML 1.2: 1.1 reads the key `on` as true, the
    value `off` as false and Norway's `no` too."""


BOOLEAN = "tag:yaml.org,2002:bool"
PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
PlainLoader.add_implicit_resolver(BOOLEAN, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def read_tree(path: str | Path, what: str = "spec") -> dict[str, Any]:
    """The mapping in the YAML file `path`. Raises: SpecError when there is none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such {what}{_nearby(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: the {what} cannot be read: {error}") from None
    try:
        tree = yaml.load(text, PlainLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise SpecError(f"{path}: a {what} is a mapping of keys, this is {type(tree).__name__}")
    return tree


def validated(model: type[Model], tree: Mapping[str, Any], where: str) -> Model:
    """`tree` as a `model`. Raises: SpecError with every mistake."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = _explain(error, model, tree)
        count = f"{len(lines)} mistakes" if len(lines) > 1 else "1 mistake"
        raise SpecError(f"{where}: {count}\n" + "\n".join(f"  {line}" for line in lines)) from None


def nearest(word: str, words: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The one of `words` that `word` may have been meant to be."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=cutoff)
    return close[0] if close else None


def apply_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `tree` with each `key.path=value` set. Raises: SpecError on one without '='."""
    result: dict[str, Any] = json.loads(json.dumps(tree))
    pairs: list[tuple[list[str], Any]] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise SpecError(f"--set {override!r}: write key.path=value, for example --set training.lr=3e-4")
        pairs.append((key.strip().split("."), parse_value(text)))
    pairs.sort(key=lambda pair: pair[0][-1] != "kind")
    for keys, value in pairs:
        node = result
        for part in keys[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                child = node[part] = {}
            node = child
        if keys[-1] == "kind" and node.get("kind") != value:
            node.clear()
        node[keys[-1]] = value
    return result


def parse_value(text: str) -> Any:
    """A value as people type it: YAML, with 3e-4 a number."""
    try:
        value = yaml.load(text, PlainLoader)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        # YAML 1.1 reads 3e-4 (no dot) as a string; people type it as a number.
        try:
            return float(value)
        except ValueError:
            return value
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys; lists stay values, and so do mappings whose keys are no names, as
    patterns are."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and all(str(name).isidentifier() for name in value):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _nearby(path: Path) -> str:
    parent = path.parent if str(path.parent) else Path(".")
    names = [p.name for p in parent.glob("*.y*ml")] if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f"; did you mean {parent / close[0]}?" if close else ""


def _explain(error: ValidationError, root: type[BaseModel], tree: Any) -> list[str]:
    """One line a mistake: dotted path, value seen, what is allowed, nearest right key."""
    lines: list[str] = []
    for item in error.errors(include_url=False):
        location = [part for part in item["loc"] if not _is_union_tag(part, item["loc"], tree)]
        path = ".".join(str(part) for part in location)
        if item["type"] == "extra_forbidden":
            allowed = _allowed_keys(root, location[:-1], tree)
            close = difflib.get_close_matches(str(location[-1]), allowed, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"allowed: {', '.join(sorted(allowed))}"
            lines.append(f"{path}: unknown key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{path}: this key is needed and is not there")
        elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            tags = item["ctx"].get("expected_tags", "").replace("'", "").split(", ")
            seen = item["ctx"].get("tag")
            if seen is None:
                allowed_kinds = ", ".join(_kinds(root, location, tree))
                lines.append(f"{path}.kind: this key is needed and is not there; allowed: {allowed_kinds}")
            else:
                close = difflib.get_close_matches(seen, tags, n=1, cutoff=0.5)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                lines.append(f"{path}.kind: {seen!r} is none of {', '.join(tags)}{hint}")
        elif item["type"] == "value_error":
            prefix = f"{path}: " if path else ""
            lines.extend(prefix + line for line in str(item["ctx"]["error"]).split("\n"))
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
            lines.append(f"{path}: {item['input']!r}: {message}")
    return lines


def _is_union_tag(part: Any, location: tuple[Any, ...], tree: Any) -> bool:
    """Whether `part` is a tag that pydantic puts into the path of a discriminated union."""
    node = tree
    for step in location:
        if isinstance(node, Mapping) and node.get("kind") == step and step not in node:
            if step is part:
                return True
            continue
        if step is part:
            return False
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            return False
    return False


def _model_at(root: type[BaseModel], location: list[Any], tree: Any) -> type[BaseModel] | None:
    current = root
    node = tree
    for part in location:
        field = current.model_fields.get(part)
        if field is None:
            return None
        node = node.get(part, {}) if isinstance(node, Mapping) else {}
        candidates = [c for c in _classes(field.annotation) if issubclass(c, BaseModel)]
        if not candidates:
            return None
        kind = node.get("kind") if isinstance(node, Mapping) else None
        tagged = [c for c in candidates if kind in _literal(c)]
        current = (tagged or candidates)[0]
    return current


def _allowed_keys(root: type[BaseModel], location: list[Any], tree: Any) -> list[str]:
    model = _model_at(root, location, tree)
    return list(model.model_fields) if model else []


def _kinds(root: type[BaseModel], location: list[Any], tree: Any) -> list[str]:
    parent = _model_at(root, location[:-1], tree)
    if parent is None:
        return []
    annotation = parent.model_fields[location[-1]].annotation
    return [tag for c in _classes(annotation) for tag in _literal(c)]


def _classes(annotation: Any) -> list[type]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [c for argument in typing.get_args(annotation) for c in _classes(argument)]
    if typing.get_origin(annotation) is Annotated:
        return _classes(typing.get_args(annotation)[0])
    return [annotation] if isinstance(annotation, type) else []


def _literal(model: type) -> tuple[str, ...]:
    if not issubclass(model, BaseModel) or "kind" not in model.model_fields:
        return ()
    return typing.get_args(model.model_fields["kind"].annotation)
