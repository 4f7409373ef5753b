"""The one contract of every metric: sums that add up over workers, then scores.

Plain PyTorch, on any worker. A metric yields `Sums` for the pieces of work that fall to its rank; the pieces are
cut by the data alone, so the total does not depend on the number of workers. The driver adds them and `finish`es.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipeline.code_version import code_version
from pipeline.data.codec import Codec
from pipeline.data.layout import Layout
from pipeline.data.prepared import Prepared, SplitArrays
from pipeline.evaluation.diversity import DEFINITIONS_OF_DIVERSITY
from pipeline.evaluation.intervals import FEWEST_BLOCKS, Estimate, Interval, jackknife, student_t_975
from pipeline.evaluation.kernel_distance import DEFINITIONS_OF_KERNEL_DISTANCE
from pipeline.evaluation.manifolds import DEFINITIONS_OF_MANIFOLDS
from pipeline.evaluation.sample_novelty import DEFINITIONS_OF_SAMPLE_NOVELTY
from pipeline.evaluation.score import Better, Curve, Definition, Score, Scores, differences, require_comparable
from pipeline.models.base import GenerativeModel, Sums
from pipeline.progress import Progress, silent
from pipeline.spec import RunSpec

if TYPE_CHECKING:
    from pipeline.evaluation.features import ClassifierExtractor, Extractor

__all__ = [
    "DEFINITIONS",
    "FEWEST_BLOCKS",
    "Better",
    "Curve",
    "Definition",
    "Estimate",
    "Interval",
    "Metric",
    "Score",
    "Scores",
    "Subject",
    "Sums",
    "add",
    "blocks_of",
    "differences",
    "in_block",
    "jackknife",
    "numbered_blocks",
    "require_comparable",
    "student_t_975",
    "total_of",
    "with_intervals",
]

DEFINITIONS: dict[str, Definition] = {
    "nll_nats": Definition(
        "Negative log-likelihood",
        "nats per example",
        "lower",
        "How surprised the model is by an example it never saw: the importance-weighted bound of Burda et al. (2016), "
        "an upper bound on the true value that tightens as the number of draws grows; of an "
        "RNN the true value. "
        "Published MNIST figures use it.",
    ),
    "elbo_nats": Definition(
        "Evidence lower bound",
        "nats per example",
        "higher",
        "What training maximises: reconstruction minus KL. It lies below minus the negative log-likelihood; the gap "
        "is what the approximate posterior loses.",
    ),
    "kl_nats": Definition(
        "KL to the prior",
        "nats per example",
        None,
        "How much the latent code says about an example. Near zero, the decoder ignores the code (posterior "
        "collapse); very large, samples from the prior look unlike reconstructions.",
    ),
    "information_nats": Definition(
        "Information in the code",
        "nats per example",
        None,
        "How many nats a code and its example tell of each other, at most: the entropy of a normal as wide as all "
        "codes together less that of one example's codes, unit by unit. Zero where the code says nothing; the KL less "
        "this is how far the codes together are from the prior.",
    ),
    "bits_per_dimension": Definition(
        "Bits per dimension",
        "bits per value",
        "lower",
        "The negative log-likelihood of whole numbers, a pixel's or a sample's, spread over them: what a lossless "
        "compressor driven by this model would need.",
    ),
    "reconstruction_mse": Definition(
        "Reconstruction error",
        "mean square per value",
        "lower",
        "Squared difference between an example and its reconstruction from the posterior's mean. For tokens, the share "
        "whose likeliest symbol is wrong.",
    ),
    "active_units": Definition(
        "Active latent units",
        "units",
        None,
        "Latent dimensions whose posterior mean varies by more than 0.01 over the held-out set: the size of the code "
        "that is in use.",
    ),
    "nats_per_token": Definition(
        "Cross-entropy",
        "nats per token",
        "lower",
        "Mean surprise at the next token. Comparable only between models with the same tokens.",
    ),
    "perplexity": Definition(
        "Perplexity",
        "tokens",
        "lower",
        "The model hesitates as if between this many equally likely next tokens: e to the cross-entropy.",
    ),
    "bits_per_char": Definition(
        "Bits per character",
        "bits per character",
        "lower",
        "Surprise spread over the characters of the text, so that models with different tokens compare.",
    ),
    "bits_per_byte": Definition(
        "Bits per byte",
        "bits per UTF-8 byte",
        "lower",
        "The same over bytes: what a compressor driven by this model would need. Plain 8-bit text is 8.",
    ),
    "wasserstein": Definition(
        "Critic's gap",
        "critic score",
        "lower",
        "The critic's mean score of held-out examples minus that of generated ones; with the gradient penalty an "
        "estimate of the Wasserstein-1 distance. Its scale belongs to this critic: follow it within a run only.",
    ),
    "frechet": Definition(
        "Fréchet distance",
        "squared feature distance",
        "lower",
        "Distance between Gaussians fitted to features of real and generated examples. The features are the "
        "extractor's that is named below, and unless another is configured that is a small network of this very "
        "corpus: it is not an Inception FID. Compare it with its floor and with runs on the same prepared data.",
        fewest=10,
        enough=1000,
    ),
    "frechet_floor": Definition(
        "Fréchet floor",
        "squared feature distance",
        None,
        "The same distance between two disjoint halves of real examples, as many as above: what a perfect model "
        "would score.",
        fewest=10,
        enough=1000,
    ),
    **DEFINITIONS_OF_KERNEL_DISTANCE,
    **DEFINITIONS_OF_MANIFOLDS,
    **DEFINITIONS_OF_DIVERSITY,
    **DEFINITIONS_OF_SAMPLE_NOVELTY,
}
"""Every score by its key without the split's prefix."""


@dataclass
class Subject:
    """What is measured: a model with the held-out split, and the extractor where the examples allow one.

    `split` is the split's entry in the manifest (rows, records, characters, utf8_bytes, ...). `classifier` is the
    corpus's own, where it has labels, and `prompt_classifier` that of its prompts. `surcharge_nats` is what a model
    that reads the split through another vocabulary is charged in all (see `compare`). `prepared` is the set that
    training examples are read from.
    """

    spec: RunSpec
    layout: Layout
    codec: Codec
    model: GenerativeModel
    arrays: SplitArrays
    split: Mapping[str, Any]
    device: torch.device
    extractor: Extractor | None = None
    surcharge_nats: float = 0.0
    classifier: ClassifierExtractor | None = None
    prepared: Prepared | None = None
    prompt_classifier: ClassifierExtractor | None = None

    @property
    def num_rows(self) -> int:
        """Held-out examples that are scored: all, or the first `evaluation.max_examples`."""
        rows = len(self.arrays.x)
        cut = self.spec.evaluation.max_examples
        return rows if cut is None else min(rows, cut)

    def protocol(self, **more: Any) -> dict[str, Any]:
        """What every score of this subject says of how it was taken."""
        return {
            "split": self.spec.evaluation.split,
            "examples": self.num_rows,
            "prepared": None if self.prepared is None else self.prepared.key,
            "seed": self.spec.seed,
            "code": code_version(),
            **more,
        }


class Metric(ABC):
    """Sums over a subject that add up over workers, and the scores they make."""

    name: str

    @abstractmethod
    def num_pieces(self, subject: Subject) -> int:
        """Pieces of work over all ranks."""

    @abstractmethod
    def pieces(self, subject: Subject, rank: int, world_size: int) -> Iterator[Sums]:
        """The sums of each piece that falls to `rank`; which pieces there are must not depend on `world_size`."""

    @abstractmethod
    def scoring(self, blocks: Sequence[Sums], subject: Subject) -> Callable[[Sums], dict[str, float]]:
        """Of all blocks, the function from the sums of some of them to their values."""

    def blocks(self, sums: Sums, subject: Subject) -> dict[int, Sums]:
        """The sums of each block, by its number."""
        return numbered_blocks(sums)

    @abstractmethod
    def finish(self, sums: Sums, subject: Subject) -> dict[str, Score]:
        """Scores, under keys without the split's prefix, from the sums of all ranks."""

    def refusals(self, subject: Subject) -> dict[str, str]:
        """The scores that `finish` leaves out because too few examples are at hand, each with the reason in words."""
        return {}

    def measure(self, subject: Subject, rank: int = 0, world_size: int = 1, progress: Progress = silent) -> Sums:
        """The sums of this rank's pieces."""
        total: Sums = {}
        count = len(range(rank, self.num_pieces(subject), world_size))
        for done, sums in enumerate(self.pieces(subject, rank, world_size), start=1):
            add(total, sums)
            progress(self.name, done, count, "")
        return total


def add(total: Sums, more: Sums) -> Sums:
    """Add `more` to `total` in place, name by name."""
    for name, value in more.items():
        total[name] = total[name] + value if name in total else value
    return total


def in_block(block: int, sums: Sums) -> Sums:
    """The sums under names of their own for `block`, so that an interval can be taken over blocks."""
    return {f"{block}|{name}": value for name, value in sums.items()}


def blocks_of(sums: Sums) -> list[Sums]:
    """Undo `in_block`: the sums of each block, in the blocks' order."""
    return list(numbered_blocks(sums).values())


def numbered_blocks(sums: Sums) -> dict[int, Sums]:
    """Undo `in_block`: the sums of each block by its number, in order."""
    blocks: dict[int, Sums] = {}
    for key, value in sums.items():
        block, _, name = key.partition("|")
        blocks.setdefault(int(block), {})[name] = value
    return {block: blocks[block] for block in sorted(blocks)}


def total_of(blocks: Sequence[Sums]) -> Sums:
    """The sum of all blocks."""
    total: Sums = {}
    for block in blocks:
        add(total, block)
    return total


def with_intervals(blocks: Sequence[Sums], scores: Callable[[Sums], dict[str, float]]) -> dict[str, Estimate]:
    """Scores of all blocks together, each with its 95% interval by the delete-one-block jackknife.

    Blocks should be of about equal size.
    """
    values = scores(total_of(blocks))
    count = len(blocks)
    if count < FEWEST_BLOCKS:
        return {name: (value, None) for name, value in values.items()}
    without = [scores(total_of([*blocks[:block], *blocks[block + 1 :]])) for block in range(count)]
    return {name: jackknife(value, [scores_[name] for scores_ in without]) for name, value in values.items()}
