"""How near generated examples are to real ones: the Fréchet distance in the space of an extractor.

Runs on any worker. Each piece of work is a chunk of held-out rows or of samples, reduced to the count, the sum and
the sum of outer products of its features (float64), which add up over pieces and workers. The distance is between
as many generated as real examples, and its floor between two disjoint real halves of that same number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.drawing import SETS, Chunk, chunks, features_of, set_sizes, smallest_set
from pipeline.evaluation.intervals import within
from pipeline.evaluation.metric import DEFINITIONS, Metric, Score, Subject, blocks_of, in_block, with_intervals
from pipeline.models.base import Sums


def moments(features: Tensor) -> Sums:
    """Count, sum `[D]` and sum of outer products `[D, D]` of features `[N, D]`, in float64 on the CPU."""
    features = features.double().cpu()
    return {
        "count": torch.tensor(float(len(features)), dtype=torch.float64),
        "sum": features.sum(0),
        "outer": features.T @ features,
    }


def gaussian(sums: Sums) -> tuple[Tensor, Tensor]:
    """Mean `[D]` and unbiased covariance `[D, D]` from `moments`."""
    count = sums["count"]
    mean = sums["sum"] / count
    covariance = (sums["outer"] - count * torch.outer(mean, mean)) / (count - 1)
    return mean, (covariance + covariance.T) / 2


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians, |ma - mb|^2 + tr(Ca + Cb - 2 (Ca Cb)^(1/2)).

    Dowson and Landau (1982), eq. 4; used on features by Heusel et al. (2017), eq. 6. With Ca = A A^T and Cb = B B^T
    the trace of the root is the sum of the singular values of A^T B, which stays exact for singular covariances.
    """
    overlap = torch.linalg.svdvals(_factor(covariance_a).T @ _factor(covariance_b)).sum()
    gap = (mean_a - mean_b).square().sum()
    return float(gap + covariance_a.trace() + covariance_b.trace() - 2 * overlap)


def _factor(covariance: Tensor) -> Tensor:
    """A with A A^T = covariance, its rounding-error directions set to zero."""
    values, vectors = torch.linalg.eigh(covariance)
    least = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return vectors * torch.where(values > least, values, 0.0).sqrt()


class FrechetDistance(Metric):
    """`frechet`: generated against real, the mean of the distances to two disjoint real sets; `frechet_floor`:
    between those two. Lower is better; squared distance of the extractor's features.

    Protocol: the three sets of `drawing`, m = min(evaluation.samples, half of the scored held-out rows) examples in
    each, the real ones the same for every run on the prepared set, unbiased covariances. Reduces by adding moments; the
    interval is a jackknife over ten blocks of all three sets. This is the distance alone, for trials and comparisons;
    `sample_scores` gives it together with all other scores of the same samples.
    """

    name = "frechet"

    def _chunks(self, subject: Subject) -> list[Chunk]:
        enough = smallest_set(subject) >= DEFINITIONS["frechet"].fewest
        return chunks(subject) if enough else []

    def num_pieces(self, subject: Subject) -> int:
        return len(self._chunks(subject))

    def pieces(self, subject: Subject, rank: int, world_size: int) -> Iterator[Sums]:
        for embedded in features_of(subject, self._chunks(subject)[rank::world_size]):
            yield moments_of(embedded.chunk, embedded.features)

    def scoring(self, blocks: Sequence[Sums], subject: Subject) -> Callable[[Sums], dict[str, float]]:
        return distances

    def finish(self, sums: Sums, subject: Subject) -> dict[str, Score]:
        if not sums or subject.extractor is None:
            return {}
        return frechet_scores(blocks_of(sums), sample_protocol(subject), smallest_set(subject))


def sample_protocol(subject: Subject) -> dict[str, Any]:
    """What every score of samples says of how it was taken."""
    extractor, sizes = subject.extractor, set_sizes(subject)
    assert extractor is not None
    protocol = subject.protocol(
        real=sizes["real_a"] + sizes["real_b"],
        generated=sizes["generated"],
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
    )
    if extractor.accuracy is not None:
        protocol["extractor_accuracy"] = round(extractor.accuracy, 4)
    return protocol


def moments_of(chunk: Chunk, features: Tensor) -> Sums:
    """The moments of a chunk's features, under names of its set and block."""
    found = moments(features)
    return in_block(chunk.block, {f"{chunk.which}/{name}": value for name, value in found.items()})


def frechet_scores(blocks: Sequence[Sums], protocol: Mapping[str, Any], examples: int) -> dict[str, Score]:
    """The distance and its floor from the moments of all blocks."""
    return {
        # A distance is not negative, though rounding and a symmetric interval may be.
        name: DEFINITIONS[name].score(within((max(0.0, value), interval), 0.0), protocol, examples)
        for name, (value, interval) in with_intervals(blocks, distances).items()
    }


def distances(sums: Sums) -> dict[str, float]:
    """The distance and its floor from the moments of the three sets."""
    real_a, real_b, generated = (
        gaussian({name: sums[f"{which}/{name}"] for name in ("count", "sum", "outer")}) for which in SETS
    )
    to_real = (frechet_distance(*generated, *real_a) + frechet_distance(*generated, *real_b)) / 2
    return {"frechet": to_real, "frechet_floor": frechet_distance(*real_a, *real_b)}
