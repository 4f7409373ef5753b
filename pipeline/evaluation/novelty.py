"""Is it new? How generated examples lie to the training set, measured against how held-out ones do.

Plain PyTorch, on the driver. All take examples as vectors: features of an extractor, in which a copy with small changes
stays near, or signals as the model sees them, in which a copy is near even where the features are too coarse to single
one example out. A model that learned the distribution and not the examples lies to its training set as held-out
examples do, so each number here comes with theirs. Distances alone do not tell a copy from a blurred example, which is
nearer to everything: `singled_out` looks at how much nearer one training example is than the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.evaluation.data_copying import DataCopying, data_copying
from pipeline.evaluation.intervals import Estimate, Interval, binomial
from pipeline.evaluation.neighbours import Neighbours, nearest
from pipeline.evaluation.score import Definition
from pipeline.models.base import make_generator

NEIGHBOURS = 50
"""Training examples that an output's surroundings are taken from (Carlini et al. 2023, section 4.2: n = 50)."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
RESAMPLES = 200
PAIRS = 16
SIGNAL = "signal_"
"""Before the keys of measures in the model's own representation."""

DEFINITIONS_OF_NOVELTY: dict[str, Definition] = {
    "nearest_ratio": Definition(
        "Distance to the training set",
        "times the held-out examples' distance",
        None,
        "Median distance of generated examples to their nearest training example, over the same of held-out ones. 1 is "
        "as new as unseen data; far below 1 the model copies or blurs, far above it strays.",
    ),
    "closer_than_1pct": Definition(
        "Closer than the closest 1%",
        "share of generated",
        "lower",
        "Generated examples that are nearer to a training example than all but 1% of the held-out examples are: 0.01 "
        "for a model as new as unseen data.",
    ),
    "closer_than_5pct": Definition(
        "Closer than the closest 5%",
        "share of generated",
        "lower",
        "The same for the closest 5% of the held-out examples: 0.05 for a model as new as unseen data.",
    ),
    "singled_out": Definition(
        "Training examples singled out",
        "share of generated",
        "lower",
        "Generated examples for which one training example is so much nearer than the next fifty as for only 1% of the "
        "held-out examples. 0.01 for a model that copies nothing; a copy with noise still counts.",
    ),
    "singled_out_held_out": Definition(
        "Training examples singled out, held-out",
        "share of held-out",
        None,
        "The same of held-out examples: 0.01, and more where the split has near-duplicates of training examples.",
    ),
    "authenticity": Definition(
        "Authenticity",
        "share of generated",
        "higher",
        "Generated examples whose nearest training example has another training example nearer to it (Alaa et al. "
        "2022). 0 for copies; compare it with that of held-out examples, which depends on the data.",
    ),
    "authenticity_held_out": Definition(
        "Authenticity of held-out examples",
        "share of held-out",
        None,
        "The same of the held-out examples: what a perfect model would score.",
    ),
    "data_copying": Definition(
        "Data-copying test C_T",
        "standard deviations, mean of cells",
        "higher",
        "Whether generated examples are nearer to the training set than held-out ones, region by region (Meehan et al. "
        "2020). About 0 for a model as new as unseen data, far below 0 for one that copies, above 0 for one that "
        "strays. It grows with the number of examples.",
    ),
    "closer_than_held_out": Definition(
        "Closer than a held-out example",
        "probability",
        "lower",
        "That a generated example is nearer to the training set than a held-out one of the same region: the size of "
        "what C_T tests. 0.5 for a model as new as unseen data.",
    ),
}


DEFINITIONS_OF_NOVELTY |= {
    SIGNAL + key: Definition(
        f"{definition.title}, in the model's own representation",
        definition.unit,
        definition.better,
        definition.reading + " Here over pixels, samples or the spectrogram and not over features.",
    )
    for key, definition in DEFINITIONS_OF_NOVELTY.items()
}


@dataclass(frozen=True)
class Share:
    """A share of examples with its exact 95% binomial interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Nearness:
    """Distances to the nearest training example. `generated` and `held_out` are their quantiles at `QUANTILES`; `ratio`
    is of the medians; `closer_than` are the shares of generated examples below the held-out's 1% and 5% quantiles.
    There is no interval where the held-out ones are as near as can be.
    """

    ratio: float
    ratio_interval: Interval | None
    generated: tuple[float, ...]
    held_out: tuple[float, ...]
    closer_than: dict[str, Share]


@dataclass(frozen=True)
class Pair:
    """Generated example `generated` and the row `train_row` of the training split that it is most like.

    `likeness` is how near that one is compared with the next ones (0 a copy, 1 no nearer than others), and
    `held_out_share` the share of held-out examples that are as like a training example, or more so.
    """

    generated: int
    train_row: int
    distance: float
    likeness: float
    held_out_share: float


@dataclass(frozen=True)
class Novelty:
    """All measures of novelty in one space.

    `different` is to how many different training examples the generated ones are nearest: a model of ten outputs says
    little of what it copies, however many are drawn.
    """

    nearness: Nearness
    singled_out: Share
    singled_out_held_out: Share
    authenticity: Share
    authenticity_held_out: Share
    copying: DataCopying
    different: int
    pairs: tuple[Pair, ...]

    def values(self, prefix: str = "") -> dict[str, Estimate]:
        """Value and 95% interval of each of `DEFINITIONS_OF_NOVELTY` whose key begins with `prefix`, "" or `SIGNAL`."""
        shares = {
            **self.nearness.closer_than,
            "singled_out": self.singled_out,
            "singled_out_held_out": self.singled_out_held_out,
            "authenticity": self.authenticity,
            "authenticity_held_out": self.authenticity_held_out,
        }
        values = {
            "nearest_ratio": (self.nearness.ratio, self.nearness.ratio_interval),
            **{name: (share.value, share.interval) for name, share in shares.items()},
            "data_copying": (self.copying.statistic, self.copying.interval),
            "closer_than_held_out": (self.copying.closer, self.copying.closer_interval),
        }
        return {prefix + name: value for name, value in values.items()}


def measure_novelty(
    generated: Tensor, held_out: Tensor, train: Tensor, train_rows: Tensor | None = None, seed: int = 0
) -> Novelty:
    """Every measure of `generated` `[n, D]` against `train` `[t, D]`, with `held_out` `[m, D]` as what is expected.

    The held-out examples must not be among the training ones. `train_rows` int64 `[t]` names the rows of the training
    split, for the pairs; `seed` decides the cells of C_T and the bootstrap.

    Raises: ValueError when a set is too small to have neighbours.
    """
    count = min(NEIGHBOURS, len(train) - 1)
    ours, theirs = nearest(generated, train, count), nearest(held_out, train, count)
    groups = ours.rows[:, 0]
    rows = torch.arange(len(train)) if train_rows is None else train_rows
    return Novelty(
        nearness=nearness(ours, theirs, seed),
        singled_out=singled_out(ours, theirs),
        singled_out_held_out=singled_out(theirs, theirs),
        authenticity=authenticity(ours, train),
        authenticity_held_out=authenticity(theirs, train),
        copying=data_copying(generated, held_out, train, seed),
        different=len(groups.unique()),
        pairs=closest_pairs(ours, theirs, rows),
    )


def nearness(generated: Neighbours, held_out: Neighbours, seed: int = 0) -> Nearness:
    """The distances of generated examples to their nearest training example against those of held-out ones.

    The interval of the ratio is a bootstrap over examples of both sets (Efron and Tibshirani 1993, eq. 13.5).
    """
    ours, theirs = generated.distances[:, 0], held_out.distances[:, 0]
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    of_held_out = theirs.quantile(levels)
    generator = make_generator(seed, "novelty-bootstrap")
    medians = [
        torch.stack([one[torch.randint(len(one), (len(one),), generator=generator)].median() for _ in range(RESAMPLES)])
        for one in (ours, theirs)
    ]
    ratios = (medians[0] / medians[1].clamp(min=torch.finfo(torch.float64).tiny)).quantile(
        torch.tensor([0.025, 0.975], dtype=torch.float64)
    )
    middle = float(theirs.median())
    known = middle > 0 and bool(torch.isfinite(ratios).all())  # held-out examples may all be training examples
    return Nearness(
        ratio=float(ours.median()) / middle if middle > 0 else 1.0,
        ratio_interval=(float(ratios[0]), float(ratios[1])) if known else None,
        generated=tuple(ours.quantile(levels).tolist()),
        held_out=tuple(of_held_out.tolist()),
        closer_than={
            f"closer_than_{round(100 * QUANTILES[place])}pct": share_of(ours < of_held_out[place], generated.rows[:, 0])
            for place in (0, 1)
        },
    )


def likeness(neighbours: Neighbours) -> Tensor:
    """Distance to the nearest training example over the mean distance to the nearest fifty, `[N]`, in [0, 1].

    Carlini et al. (2023), Extracting Training Data from Diffusion Models, section 4.2: their adaptive distance without
    its factor. It does not change when all distances shrink, as they do for examples of little contrast.
    """
    around = neighbours.distances.mean(1)
    return torch.where(around > 0, neighbours.distances[:, 0] / around, 0.0)


def singled_out(generated: Neighbours, held_out: Neighbours) -> Share:
    """Share of generated examples with a `likeness` not above the held-out examples' 1% quantile; lower is better."""
    limit = likeness(held_out).quantile(0.01)
    return share_of(likeness(generated) <= limit, generated.rows[:, 0])


def authenticity(examples: Neighbours, train: Tensor) -> Share:
    """Share of examples that are not copies by the test of Alaa et al. (2022), section 4; higher is better.

    With x* the training example nearest to an example g, g is authentic when some other training example is nearer to
    x* than g is: d(x*, D without x*) < d(x*, g). Of an unseen example it is one minus the probability that it and x*
    are each other's nearest: 1/3 in one dimension, 0.38 in two, 0.41 in three (Pickard 1982), and more where a few
    training examples are nearest to many (0.8 of 64 independent normals). `examples` are the neighbours of the examples
    among `train` `[t, D]`; the interval is over examples, the training set being given.
    """
    rows, place = examples.rows[:, 0].unique(return_inverse=True)
    own = nearest(train[rows], train, exclude=rows).distances[:, 0]
    return share_of(own[place] < examples.distances[:, 0])


def closest_pairs(
    generated: Neighbours, held_out: Neighbours, train_rows: Tensor, count: int = PAIRS
) -> tuple[Pair, ...]:
    """The generated examples most like a training example, the most alike first, each training example once."""
    ours, theirs = likeness(generated), likeness(held_out)
    order = sorted(range(len(ours)), key=lambda row: (float(ours[row]), float(generated.distances[row, 0]), row))
    pairs: list[Pair] = []
    seen: set[int] = set()
    for row in order:
        place = int(generated.rows[row, 0])
        if place in seen:
            continue
        seen.add(place)
        share = float((theirs <= ours[row]).double().mean())
        distance = float(generated.distances[row, 0])
        pairs.append(Pair(row, int(train_rows[place]), distance, float(ours[row]), share))
        if len(pairs) == count:
            break
    return tuple(pairs)


def share_of(hits: Tensor, groups: Tensor | None = None) -> Share:
    """The share of True in `hits` `[N]`, with the interval of Clopper and Pearson (1934).

    Examples of one group of `groups` int64 `[N]` are taken to say the same thing, so the interval is that of as many
    independent examples as there are groups: wider than it need be where they are not all alike.
    """
    total = len(hits) if groups is None else len(groups.unique())
    value = float(hits.double().mean())
    return Share(value, binomial(value * total, total))
