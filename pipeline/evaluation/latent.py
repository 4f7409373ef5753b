"""Looking into a latent space: which dimensions are used, what each of them does, and where held-out examples lie.

Plain PyTorch, on the driver, for the report: a few thousand held-out examples are encoded once and some hundred
points decoded. Nothing here is a score; what is measured (KL, variance) describes the code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.data.codec import Codec
from pipeline.data.layout import Layout
from pipeline.data.prepared import SplitArrays
from pipeline.models.base import GenerativeModel, Noise, make_generator
from pipeline.models.conditioning import Asked
from pipeline.models.gan import GenerativeAdversarialNetwork
from pipeline.models.posterior import kl_to_standard_normal
from pipeline.models.vae import ACTIVE_VARIANCE, VariationalAutoencoder

MOST_EXAMPLES = 2000
"""Held-out examples that are encoded; the first, as the split is in no order of content."""
MOST_TRAVERSED = 6
REACH = 3.0
"""A traversal goes this many standard deviations of the prior to either side: 99.7% of it."""
STEPS = {"image": 11, "audio": 7, "text": 7}
"""Frames of a path: a sound is some tens of kilobytes, and a sentence jumps rather than moves."""
PATHS = {"image": 4, "audio": 2, "text": 3}
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Posteriors:
    """q(z | x) of held-out examples: `mean` and `log_variance`, float64 `[N, Z]`."""

    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True)
class Usage:
    """How much of the code each dimension carries.

    `kl_nats` is the mean over examples of each dimension's KL to the standard normal, `[Z]`, summing to the model's
    `kl_nats` where that is its prior;
    `variance` that of the posterior means over examples, `[Z]`; `order` all dimensions, the largest KL first; `active`
    those of `order` whose variance is above 0.01 (Burda et al. 2016, section 5.3).
    """

    kl_nats: list[float]
    variance: list[float]
    order: list[int]
    active: list[int]


@dataclass(frozen=True)
class Walk:
    """Raw examples decoded along a path through the latent space, at `positions`; `start` is where it is entered."""

    title: str
    positions: list[float]
    frames: list[Any]
    start: int
    ends: tuple[Any, Any] | None = None
    """The held-out examples, raw, between whose codes the path lies."""


@dataclass(frozen=True)
class Map:
    """Posterior means on their first two principal axes: `points` float64 `[N, 2]`, a label each ("" where unknown),
    and which share of the variance each axis has."""

    points: Tensor
    labels: list[str]
    explained: tuple[float, float]


@dataclass(frozen=True)
class LatentView:
    """What the report shows of a latent space. A GAN has no posterior: only `interpolations`, between draws."""

    latent_size: int
    interpolations: list[Walk]
    usage: Usage | None = None
    from_prior: tuple[Walk, ...] = ()
    from_example: tuple[Walk, ...] = ()
    example: Any = None
    """The held-out example, raw, from whose code the paths of `from_example` leave."""
    map: Map | None = None
    num_examples: int = 0


def look_into(
    model: GenerativeModel, codec: Codec, layout: Layout, held_out: SplitArrays, seed: int
) -> LatentView | None:
    """The view of a model with latents; None for one without, and where a VAE has fewer than two held-out examples.

    `held_out` rows are in the stored type; `layout` is the prepared set's, with its labels. A function of the
    arguments alone: the same seed, the same view.
    """
    steps, count = STEPS[layout.modality], PATHS[layout.modality]
    if isinstance(model, GenerativeAdversarialNetwork):
        device = next(model.parameters()).device
        z = Noise(make_generator(seed, "latent-draws", device=device)).normal(2 * count, model.family.latent_size)
        ways = [between(z[2 * i], z[2 * i + 1], steps) for i in range(count)]
        shares = _spaced(0, 1, steps)
        return LatentView(
            model.family.latent_size,
            [
                Walk(f"draw {2 * i + 1} to draw {2 * i + 2}", shares, frames, 0)
                for i, frames in enumerate(_decoded(model, codec, ways))
            ],
        )
    if not isinstance(model, VariationalAutoencoder) or len(held_out) < 2:
        return None
    x = held_out.x[:MOST_EXAMPLES]
    conditions = _conditions(model, held_out, len(x))
    posteriors = encode_all(model, layout, x, seed, conditions)
    used = usage(posteriors)
    codes = posteriors.mean.float()
    dimensions = (used.active or used.order)[:MOST_TRAVERSED]
    places = _spaced(-REACH, REACH, steps)
    order = torch.randperm(len(x), generator=make_generator(seed, "latent-examples")).tolist()
    chosen, pairs = order[0], _pairs(order, held_out.label.tolist(), count)
    middle = torch.zeros_like(codes[0])
    asked = None
    if conditions is not None:
        # All is decoded as what the chosen example is, and between two examples the condition goes over as well.
        asked = [conditions[chosen].expand(steps, -1)] * (2 * len(dimensions))
        share = torch.linspace(0, 1, steps).unsqueeze(1)
        asked += [torch.lerp(conditions[a].unsqueeze(0), conditions[b].unsqueeze(0), share) for a, b in pairs]
    ways = [_of_prior(model, traversal(middle, dimension, places), conditions, chosen) for dimension in dimensions]
    ways += [traversal(codes[chosen], dimension, places) for dimension in dimensions]
    ways += [between(codes[a], codes[b], steps) for a, b in pairs]
    frames = _decoded(model, codec, ways, asked)

    def raw(row: int) -> Any:
        return codec.decode(layout.to_model(x[row]).cpu().numpy())

    def walks(first: int, starts: Sequence[int]) -> tuple[Walk, ...]:
        return tuple(
            Walk(f"dimension {dimension}", places, frames[first + i], starts[i])
            for i, dimension in enumerate(dimensions)
        )

    turned = frames[2 * len(dimensions) :]
    return LatentView(
        latent_size=codes.shape[1],
        interpolations=[
            Walk(f"example {a + 1} to example {b + 1}", _spaced(0, 1, steps), turned[i], 0, (raw(a), raw(b)))
            for i, (a, b) in enumerate(pairs)
        ],
        usage=used,
        # Off the middle, where all of them would show the same.
        from_prior=walks(0, [steps - 1 - steps // 4] * len(dimensions)),
        from_example=walks(len(dimensions), [_nearest(places, float(codes[chosen][d])) for d in dimensions]),
        example=raw(chosen),
        map=principal_map(posteriors.mean, _names(layout, held_out.label[: len(x)])),
        num_examples=len(x),
    )


@torch.no_grad()
def _conditions(model: VariationalAutoencoder, held_out: SplitArrays, count: int) -> Tensor | None:
    """What a conditional model is told of the labels and prompts of the first rows, float32 `[count, C]` on the CPU."""
    device = next(model.parameters()).device
    prompt = None if held_out.prompt is None else held_out.prompt[:count].long().to(device)
    told = model.condition_of(Asked(held_out.label[:count].to(device), prompt))
    return None if told is None else told.cpu()


@torch.no_grad()
def _of_prior(model: VariationalAutoencoder, unit: Tensor, conditions: Tensor | None, row: int) -> Tensor:
    """The codes that standard normal numbers `[S, Z]` stand for, given the condition of a row."""
    device = next(model.parameters()).device
    told = None if conditions is None else conditions[row].to(device).expand(len(unit), -1)
    return model.prior.draw(unit.to(device), told).cpu()


@torch.no_grad()
def encode_all(
    model: VariationalAutoencoder, layout: Layout, x: Tensor, seed: int, conditions: Tensor | None = None
) -> Posteriors:
    """The posteriors of stored rows `[N, ...]`, each given its condition `[N, C]` in a model that has them; a
    binarisation draws its noise from `seed`."""
    device = next(model.parameters()).device
    means, log_variances = [], []
    for batch, first in enumerate(range(0, len(x), 8 * ROWS_AT_ONCE)):
        noise = Noise(make_generator(seed, "latent-encode", batch, device=device))
        rows = layout.to_model(x[first : first + 8 * ROWS_AT_ONCE]).to(device)
        told = None if conditions is None else conditions[first : first + 8 * ROWS_AT_ONCE].to(device)
        mean, log_variance = model.encode(model.observe(rows, noise), told)
        means.append(mean.double().cpu())
        log_variances.append(log_variance.double().cpu())
    return Posteriors(torch.cat(means), torch.cat(log_variances))


def usage(posteriors: Posteriors) -> Usage:
    """Which dimensions carry the code, and how many nats each."""
    kl = kl_to_standard_normal(posteriors.mean, posteriors.log_variance).mean(0)
    variance = posteriors.mean.var(0, correction=0)
    order = kl.argsort(descending=True, stable=True).tolist()
    active = [dimension for dimension in order if variance[dimension] > ACTIVE_VARIANCE]
    return Usage(kl.tolist(), variance.tolist(), order, active)


def traversal(start: Tensor, dimension: int, places: Sequence[float]) -> Tensor:
    """`start` `[Z]` with one dimension at each of `places`: `[S, Z]`."""
    path = start.repeat(len(places), 1)
    path[:, dimension] = torch.tensor(places, dtype=start.dtype, device=start.device)
    return path


def between(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Points `[steps, Z]` from `a` to `b` `[Z]`, both included, on a great circle with the length going linearly.

    A straight line between two draws of a wide Gaussian passes nearer to the origin than any draw does, where the
    decoder was never trained (White 2016, section 2); turning keeps the length. Codes of (nearly) one or opposite
    directions have no one circle between them: there the line is straight.
    """
    share = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device).unsqueeze(1)
    straight = torch.lerp(a.unsqueeze(0), b.unsqueeze(0), share)
    length_a, length_b = a.norm(), b.norm()
    if length_a == 0 or length_b == 0:
        return straight
    cosine = (a @ b / (length_a * length_b)).clamp(-1, 1)
    angle = cosine.acos()
    if angle < 1e-3 or angle > math.pi - 1e-3:
        return straight
    turned = (torch.sin((1 - share) * angle) * a / length_a + torch.sin(share * angle) * b / length_b) / angle.sin()
    path = turned * torch.lerp(length_a, length_b, share)
    path[0], path[-1] = a, b
    return path


def principal_map(mean: Tensor, labels: list[str]) -> Map:
    """Posterior means `[N, Z]` projected on the two directions in which they vary most: exact PCA, by the singular
    values of the centred means (Jolliffe 2002, section 3.5). Each axis points where its largest coefficient does."""
    centred = mean.double() - mean.double().mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    total = float(singular.square().sum())
    axes = torch.zeros(2, centred.shape[1], dtype=torch.float64)
    found = min(2, len(directions))
    axes[:found] = directions[:found]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    shares = [float(value.square()) / total if total > 0 else 0.0 for value in singular[:2]] + [0.0, 0.0]
    return Map(centred @ axes.T, labels, (shares[0], shares[1]))


def _decoded(
    model: Any, codec: Codec, ways: Sequence[Tensor], asked: Sequence[Tensor] | None = None
) -> list[list[Any]]:
    """Raw examples along each way `[S, Z]`, decoded together, each as what it is `asked` for, `[S, C]` a way."""
    if not ways:
        return []
    device = next(model.parameters()).device
    given = [torch.cat(list(parts)).to(device).split(ROWS_AT_ONCE) for parts in (ways, asked) if parts is not None]
    decoded = [model.decode(*parts).cpu().numpy() for parts in zip(*given, strict=True)]
    raws = [codec.decode(example) for part in decoded for example in part]
    steps = len(ways[0])
    return [raws[first : first + steps] for first in range(0, len(raws), steps)]


def _pairs(order: Sequence[int], labels: Sequence[int], count: int) -> list[tuple[int, int]]:
    """`count` pairs of rows, each from the front of `order` with the next of another label, where there is one."""
    rest = list(order[:200])
    pairs: list[tuple[int, int]] = []
    while len(rest) >= 2 and len(pairs) < count:
        first = rest.pop(0)
        other = next((i for i, row in enumerate(rest) if labels[row] != labels[first]), 0)
        pairs.append((first, rest.pop(other)))
    return pairs


def _names(layout: Layout, label: Tensor) -> list[str]:
    return [layout.labels[i] if 0 <= i < len(layout.labels) else "" for i in label.tolist()]


def _spaced(low: float, high: float, steps: int) -> list[float]:
    return [round(low + (high - low) * i / (steps - 1), 4) for i in range(steps)]


def _nearest(places: Sequence[float], value: float) -> int:
    return min(range(len(places)), key=lambda i: abs(places[i] - value))
