"""Surgery: a trained model's weights carried over into another model, as far as they fit.

Plain PyTorch, in the driver, before anything is launched. What a dimension of a parameter counts (tokens, labels,
channels) is found by building the model once more for a layout with one more of them and looking which dimensions
grew. Families say nothing of it and are held to one convention: along such a dimension the tokens (labels, channels)
come first, in their order, and what the family adds (a start symbol) comes behind.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from pipeline.data.layout import Layout
from pipeline.errors import TransferError
from pipeline.models import build_model
from pipeline.spec import RunSpec

Role = Literal["token", "label", "channel"]
Fate = Literal["kept", "resized", "new"]
MEAN = -1
"""Stands for the mean of all that the donor has, where a place of the model's is taken from none of the donor's."""


@dataclass(frozen=True)
class Donor:
    """The trained model that weights come from: its layout, what its tokens stand for (`Codec.meanings`), and its
    weights by their names."""

    layout: Layout
    meanings: Sequence[Hashable]
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class Axis:
    """A dimension of a parameter that counts tokens (labels, channels): `[blocks, count, inner]` laid flat.

    `blocks` are such as means and deviations; `inner` is the extent of an example where it is laid flat too, else 1.
    Behind them may be some that are the family's own.
    """

    role: Role
    dimension: int
    blocks: int
    inner: int


@dataclass(frozen=True)
class Fitted:
    """What became of one of the model's tensors, and how in words where it is not `kept`."""

    name: str
    fate: Fate
    how: str = ""


@dataclass(frozen=True)
class Inheritance:
    """What a model took over: each tensor's fate, and which of its tokens and labels the donor did not have."""

    tensors: tuple[Fitted, ...]
    num_tokens: int
    new_tokens: tuple[str, ...]
    num_labels: int
    new_labels: tuple[str, ...]

    def names(self, fate: Fate) -> list[str]:
        return [tensor.name for tensor in self.tensors if tensor.fate == fate]

    def in_words(self) -> str:
        """One line: "14 tensors kept, 3 resized, 0 made new; 61 of 65 tokens were known"."""
        kept, resized, new = (len(self.names(fate)) for fate in ("kept", "resized", "new"))
        words = [f"{kept} tensors kept, {resized} resized, {new} made new"]
        for count, unknown, what in (
            (self.num_tokens, self.new_tokens, "tokens"),
            (self.num_labels, self.new_labels, "labels"),
        ):
            if unknown:
                words.append(f"{count - len(unknown):,} of {count:,} {what} were known")
        return "; ".join(words)

    def as_dict(self) -> dict[str, Any]:
        """Of JSON types."""
        return {
            "summary": self.in_words(),
            "new_tokens": list(self.new_tokens),
            "new_labels": list(self.new_labels),
            "tensors": [vars(tensor) for tensor in self.tensors],
        }


def inherit(
    spec: RunSpec, layout: Layout, meanings: Sequence[Hashable], donor: Donor
) -> tuple[dict[str, Tensor], Inheritance]:
    """The weights that a model of `spec` over `layout` begins with, and what became of each.

    A tensor of the donor's name and shape is kept. Rows of tokens and labels go with what these stand for, whatever
    their identifiers; those that the donor did not have begin at the mean of all that it had (Hewitt 2021: a new
    token then takes no more than the average token's share of the softmax). Channels of another number are averaged:
    every output channel gives the mean of the donor's, and input channels share their sum, so that a grey picture is
    read as before. Where the model sees a condition and the donor saw none, the donor's tensors that read it as well
    begin with zeros for it: at first they do what they did, whatever is asked. A tensor of any other extent is as in a
    new model. Raises: TransferError when nothing fits.
    """
    model = build_model(spec, layout)
    axes, asked = axes_of(spec, layout), _condition_axes(spec, layout)
    before, now = donor.layout, layout
    same_channels = before.view == now.view == "signal" and before.channels == now.channels
    sources: dict[Role, list[int]] = {
        "token": _sources(meanings, donor.meanings),
        "label": _sources(now.labels, before.labels),
        "channel": list(range(now.channels)) if same_channels else [MEAN] * now.channels,
    }
    counts: dict[Role, int] = {"token": before.vocabulary, "label": len(before.labels), "channel": before.channels}
    same_space = before.shape == now.shape if now.view == "tokens" else before.space == now.space
    weights: dict[str, Tensor] = {}
    tensors: list[Fitted] = []
    for name, fresh in model.state_dict().items():
        old = donor.weights.get(name)
        weights[name] = fresh
        if old is None:
            tensors.append(Fitted(name, "new", f"the donor has no such tensor, {_extents(fresh)} here"))
            continue
        carried: Tensor | None = old
        for axis in axes.get(name, ()):
            if axis.inner > 1 and not same_space:
                carried = None
            if carried is not None:
                reads = axis.role == "channel" and _is_input(model, name, axis.dimension)
                carried = _along(carried, fresh, axis, sources[axis.role], counts[axis.role], shared=reads)
        for dimension in asked.get(name, ()):
            if carried is not None and carried.dim() > dimension:
                missing = fresh.shape[dimension] - carried.shape[dimension]
                if missing == spec.model.condition.size:
                    rows = carried.movedim(dimension, 0)
                    carried = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]).movedim(0, dimension)
        if carried is None or carried.shape != fresh.shape:
            tensors.append(Fitted(name, "new", f"{_extents(old)} there, {_extents(fresh)} here"))
            continue
        weights[name] = carried.to(fresh.dtype).contiguous()
        if carried.shape == old.shape and torch.equal(carried, old):
            tensors.append(Fitted(name, "kept"))
        else:
            roles = [f"{axis.role}s" for axis in axes.get(name, ())] or ["condition"]
            how = f"{_extents(old)} to {_extents(fresh)} along its {', '.join(roles)}"
            tensors.append(Fitted(name, "resized", how))
    inheritance = Inheritance(
        tuple(tensors),
        len(meanings),
        _unknown(meanings, sources["token"]),
        len(now.labels),
        _unknown(now.labels, sources["label"]),
    )
    if not inheritance.names("kept") and not inheritance.names("resized"):
        first = tensors[0]
        raise TransferError(
            f"none of the model's {len(tensors)} tensors is among the donor's with an extent that fits (the first, "
            f"{first.name!r}: {first.how}); take a model of the same family and backbone"
        )
    return weights, inheritance


def axes_of(spec: RunSpec, layout: Layout) -> dict[str, list[Axis]]:
    """Along which dimensions the tensors of a model of `spec` count tokens, labels or channels of `layout`."""
    shapes, spread = _shapes(spec, layout), _shapes(spec, _wider(layout))
    more: dict[Role, tuple[Layout, int]] = {}
    if layout.view == "tokens":
        more["token"] = replace(layout, vocabulary=layout.vocabulary + 1), layout.vocabulary
    else:
        more["channel"] = replace(layout, shape=(layout.channels + 1, *layout.space)), layout.channels
    if layout.labels:
        more["label"] = replace(layout, labels=(*layout.labels, "")), len(layout.labels)
    space = layout.length if layout.view == "tokens" else layout.dimensions // layout.channels
    axes: dict[str, list[Axis]] = {}
    for role, (larger, count) in more.items():
        grown = _shapes(spec, larger)
        for name, shape in shapes.items():
            for dimension, (extent, then) in enumerate(zip(shape, grown[name], strict=True)):
                each = then - extent
                if each > 0:
                    assert extent >= each * count, f"{name} {shape}: {count} {role}s and {each} more for one more"
                    flat = spread[name][dimension] != extent and each % space == 0
                    inner = space if flat else 1
                    axes.setdefault(name, []).append(Axis(role, dimension, each // inner, inner))
    return axes


def _condition_axes(spec: RunSpec, layout: Layout) -> dict[str, list[int]]:
    """Along which dimensions tensors read the vector of a condition, which stands behind all else that they read."""
    condition = spec.model.condition
    if not condition.on:
        return {}
    wider = condition.model_copy(update={"size": condition.size + 1})
    model = spec.model.model_copy(update={"condition": wider})
    shapes, grown = _shapes(spec, layout), _shapes(spec.model_copy(update={"model": model}), layout)
    return {
        name: [dimension for dimension, extent in enumerate(shape) if grown[name][dimension] == extent + 1]
        for name, shape in shapes.items()
    }


def _shapes(spec: RunSpec, layout: Layout) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in build_model(spec, layout).state_dict().items()}


def _wider(layout: Layout) -> Layout:
    """The layout with examples of twice the extent."""
    if layout.raster:
        height, *rest = layout.raster
        return replace(layout, shape=(2 * layout.length,), raster=(2 * height, *rest))
    if layout.view == "tokens":
        return replace(layout, shape=(2 * layout.length,))
    return replace(layout, shape=(layout.channels, *(2 * extent for extent in layout.space)))


def _sources(now: Sequence[Hashable], before: Sequence[Hashable]) -> list[int]:
    """For each of `now` its place in `before`, or MEAN."""
    places = {each: place for place, each in enumerate(before)}
    return [places.get(each, MEAN) for each in now]


def _unknown(now: Sequence[Hashable], sources: Sequence[int]) -> tuple[str, ...]:
    return tuple(_in_words(each) for each, source in zip(now, sources, strict=True) if source == MEAN)


def _in_words(meaning: Hashable) -> str:
    if isinstance(meaning, bytes):
        return meaning.decode("utf-8", errors="backslashreplace")
    return " ".join(map(str, meaning)) if isinstance(meaning, tuple) else str(meaning)


def _along(old: Tensor, fresh: Tensor, axis: Axis, sources: Sequence[int], count: int, shared: bool) -> Tensor | None:
    """`old` with the places of `sources`, of its `count`, along an axis; None where its extent is not such a one.

    `shared`: of another number, all together weigh as much as before.
    """
    if old.dim() <= axis.dimension or count == 0:
        return None
    rows = old.movedim(axis.dimension, 0)
    each = axis.blocks * axis.inner
    own, own_now = rows.shape[0] - each * count, fresh.shape[axis.dimension] - each * len(sources)
    if own < 0:
        return None
    body, behind = rows[: each * count], rows[each * count :]
    counted = body.unflatten(0, (axis.blocks, count, axis.inner)).movedim(1, 0)  # [count, blocks, inner, ...]
    taken = torch.cat([counted, counted.mean(0, keepdim=True)])[torch.tensor(sources) % (count + 1)]
    if shared and len(sources) != count:
        taken = taken * (count / len(sources))
    added = rows.mean(0, keepdim=True).expand(max(0, own_now - own), *rows.shape[1:])
    carried = torch.cat([taken.movedim(0, 1).flatten(0, 2), behind[:own_now], added])
    return carried.movedim(0, axis.dimension).contiguous()


def _is_input(model: nn.Module, name: str, dimension: int) -> bool:
    """Whether a dimension of a layer's weight runs over what the layer reads, not over what it gives."""
    path = name.split(".")
    for length in range(len(path) - 1, 0, -1):
        layer = model.get_submodule(".".join(path[:length]))
        if isinstance(layer, _ConvTransposeNd):
            return dimension == 0 and path[-1] != "bias"
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            return dimension == 1
    return False


def _extents(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
