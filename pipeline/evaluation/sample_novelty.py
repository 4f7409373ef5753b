"""How new, how varied by themselves and how detailed generated pictures and sounds are: every such score at once.

Plain PyTorch, on the driver. Reads the features that fidelity and diversity read, and the same examples as the model
has them: an extractor may throw noisy copies far from what they copy, pixels or samples may not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from pipeline.evaluation.detail import DEFINITIONS_OF_DETAIL, measure_detail
from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.novelty import DEFINITIONS_OF_NOVELTY, SIGNAL, Novelty, measure_novelty
from pipeline.evaluation.repeats import DEFINITIONS_OF_REPEATS, measure_repeats
from pipeline.evaluation.samples import SampleFeatures
from pipeline.evaluation.score import Definition

FEWEST, ENOUGH = 20, 300
"""Examples in the smallest set below which none of these scores is given, and below which each comes with a caution: of
fewer than 300, the 1% of held-out examples that limits are taken from are two or none."""

DEFINITIONS_OF_SAMPLE_NOVELTY: dict[str, Definition] = {
    key: replace(definition, fewest=FEWEST, enough=ENOUGH)
    for key, definition in {**DEFINITIONS_OF_NOVELTY, **DEFINITIONS_OF_REPEATS, **DEFINITIONS_OF_DETAIL}.items()
}


@dataclass(frozen=True)
class SampleSignals:
    """The examples of a `SampleFeatures` as the model has them, `[N, C, *space]` in its layout's range.

    `generated` may be the first of the generated examples only, and `train` any of the training examples, of which
    `train_rows` int64 `[t]` are the rows in the training split.
    """

    generated: Tensor
    held_out: Tensor
    train: Tensor
    train_rows: Tensor


@dataclass(frozen=True)
class SampleNovelty:
    """Novelty in the space of the features and in that of the signals, and all scores by key."""

    by_features: Novelty
    by_signals: Novelty
    estimates: dict[str, Estimate]


def measure_sample_novelty(features: SampleFeatures, signals: SampleSignals, seed: int = 0) -> SampleNovelty:
    """Every score in `DEFINITIONS_OF_SAMPLE_NOVELTY`, with its 95% interval (each function says which).

    Signals are compared in single precision. Raises: ValueError when a set has no neighbours to find.
    """
    generated, held_out, train = (x.float().flatten(1) for x in (signals.generated, signals.held_out, signals.train))
    by_features = measure_novelty(features.generated, features.held_out, features.train, features.train_rows, seed)
    by_signals = measure_novelty(generated, held_out, train, signals.train_rows, seed)
    return SampleNovelty(
        by_features,
        by_signals,
        {
            **by_features.values(),
            **by_signals.values(SIGNAL),
            **measure_repeats(features.generated, features.held_out),
            **measure_repeats(generated, held_out, SIGNAL),
            **measure_detail(signals.generated, signals.held_out),
        },
    )
