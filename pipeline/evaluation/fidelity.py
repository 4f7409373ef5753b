"""How near generated examples are to real ones: the Fréchet distance in the space of an extractor.

Runs on any worker. Each piece of work is a chunk of held-out rows or of samples, reduced to the count, the sum and
the sum of outer products of its features (float64), which add up over pieces and workers. The distance is between
as many generated as real examples, and its floor between two disjoint real halves of that same number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import TrainingFailedError
from pipeline.evaluation.metric import DEFINITIONS, Metric, Score, Subject, blocks_of, in_block, with_intervals
from pipeline.models.base import SamplingOptions, Sums, make_generator

BLOCKS = 10
"""Blocks of each set that the interval is taken over."""
FEWEST = 20
"""Held-out examples below which no distance is given."""
SETS = ("real_a", "real_b", "generated")


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


@dataclass(frozen=True)
class Chunk:
    """Examples `start` to `stop` of one of the three sets, and the block they belong to."""

    which: str
    number: int
    start: int
    stop: int
    block: int


class FrechetDistance(Metric):
    """`frechet`: generated against real, the mean of the distances to two disjoint real sets; `frechet_floor`:
    between those two. Lower is better; squared distance of the extractor's features.

    Protocol: m = min(evaluation.samples, half of the scored held-out rows) examples in each of the three sets, the
    real ones the same for every run on the prepared set, unbiased covariances. Reduces by adding moments; the
    interval is a jackknife over ten blocks of all three sets.
    """

    name = "frechet"

    def set_size(self, subject: Subject) -> int:
        """Examples in each of the two real sets and in the generated one; 0 when there are too few."""
        if subject.extractor is None or subject.num_rows < FEWEST:
            return 0
        return min(subject.spec.evaluation.samples, subject.num_rows // 2)

    def chunks(self, subject: Subject) -> list[Chunk]:
        """All the work, cut by the data and the spec alone."""
        total = self.set_size(subject)
        if total == 0:
            return []
        size = min(subject.spec.evaluation.batch_size, -(-total // BLOCKS))
        count = -(-total // size)
        return [
            Chunk(which, number, number * size, min((number + 1) * size, total), number * BLOCKS // max(BLOCKS, count))
            for which in SETS
            for number in range(count)
        ]

    def num_pieces(self, subject: Subject) -> int:
        return len(self.chunks(subject))

    def pieces(self, subject: Subject, rank: int, world_size: int) -> Iterator[Sums]:
        if subject.extractor is None:
            return
        total, seed = self.set_size(subject), subject.spec.seed
        # Not the run's seed: every run on this prepared set is compared with the same real examples.
        order = torch.randperm(subject.num_rows, generator=make_generator(0, "evaluation-real"))
        was_training = subject.model.training
        subject.model.eval()
        try:
            for chunk in self.chunks(subject)[rank::world_size]:
                if chunk.which == "generated":
                    generator = make_generator(seed, "evaluation-sample", chunk.number, device=subject.device)
                    x = subject.model.sample(chunk.stop - chunk.start, generator, SamplingOptions())
                    if not bool(torch.isfinite(x).all()):
                        raise TrainingFailedError(
                            f"evaluation: samples {chunk.start} to {chunk.stop} of the model hold values that are not "
                            "finite, so its weights are broken; train again with a lower training.lr or a clip_norm"
                        )
                else:
                    first = total if chunk.which == "real_b" else 0
                    rows = order[first + chunk.start : first + chunk.stop]
                    x = subject.layout.to_model(subject.arrays.x[rows])
                found = moments(subject.extractor.features(x))
                yield in_block(chunk.block, {f"{chunk.which}/{name}": value for name, value in found.items()})
        finally:
            subject.model.train(was_training)

    def scoring(self, blocks: Sequence[Sums], subject: Subject) -> Callable[[Sums], dict[str, float]]:
        return distances

    def finish(self, sums: Sums, subject: Subject) -> dict[str, Score]:
        if not sums or subject.extractor is None:
            return {}
        extractor = subject.extractor
        protocol = subject.protocol(
            real=self.set_size(subject),
            generated=self.set_size(subject),
            extractor=extractor.name,
            extractor_sha256=extractor.sha256,
        )
        if extractor.accuracy is not None:
            protocol["extractor_accuracy"] = round(extractor.accuracy, 4)
        scores: dict[str, Score] = {}
        for name, (value, interval) in with_intervals(blocks_of(sums), distances).items():
            # A distance is not negative, though rounding and a symmetric interval may be.
            bounds = None if interval is None else (max(0.0, interval[0]), interval[1])
            scores[name] = Score(
                max(0.0, value), DEFINITIONS[name].unit, DEFINITIONS[name].better, dict(protocol), bounds
            )
        return scores


def distances(sums: Sums) -> dict[str, float]:
    """The distance and its floor from the moments of the three sets."""
    real_a, real_b, generated = (
        gaussian({name: sums[f"{which}/{name}"] for name in ("count", "sum", "outer")}) for which in SETS
    )
    to_real = (frechet_distance(*generated, *real_a) + frechet_distance(*generated, *real_b)) / 2
    return {"frechet": to_real, "frechet_floor": frechet_distance(*real_a, *real_b)}
