"""Which examples scores of samples are taken over, and their features chunk by chunk: generated, held-out, training.

Plain PyTorch, on any worker. Three sets of equal size are cut, two of held-out examples and one of generated ones, so
that what generated examples score against real ones can be held against what real ones score; and training examples,
evenly spaced. Chunks are cut by the data and the spec alone and each is worked on by one thread, so that the numbers
do not depend on the workers or their cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import TrainingFailedError
from pipeline.evaluation.extractors.encoder import one_thread
from pipeline.evaluation.metric import Subject
from pipeline.models.base import SamplingOptions, make_generator

BLOCKS = 10
"""Blocks of each set that the Fréchet distance's interval is taken over."""
SETS = ("real_a", "real_b", "generated")
TRAINING = "training"
MOST_IN_CHUNK, MOST_NUMBERS_IN_CHUNK = 2000, 2**24
"""Training examples in a chunk, neighbours in their shards: so many, or fewer where they are large (64 MiB)."""


@dataclass(frozen=True)
class Chunk:
    """Examples `start` to `stop` of one of the sets, and the block they belong to."""

    which: str
    number: int
    start: int
    stop: int
    block: int


def set_sizes(subject: Subject) -> dict[str, int]:
    """Examples of each set: `evaluation.samples`, or half of the scored held-out rows where these are fewer, an odd one
    being in the first half. All 0 without an extractor."""
    if subject.extractor is None:
        return dict.fromkeys(SETS, 0)
    size = min(subject.spec.evaluation.samples, subject.num_rows // 2)
    odd = min(subject.num_rows, 2 * subject.spec.evaluation.samples) - 2 * size
    return {"real_a": size + odd, "real_b": size, "generated": size}


def smallest_set(subject: Subject) -> int:
    """What the rule for small samples looks at."""
    return min(set_sizes(subject).values())


def training_rows(subject: Subject) -> Tensor:
    """Rows of the training split that generated examples are held against, int64 `[t]`: all, or as many as
    `evaluation.training_samples` at equal distances."""
    if subject.prepared is None:
        return torch.zeros(0, dtype=torch.int64)
    total = int(subject.prepared.manifest.splits["train"]["rows"])
    count = min(total, subject.spec.evaluation.training_samples)
    return torch.arange(count) * total // max(1, count)


def chunks(subject: Subject) -> list[Chunk]:
    """All chunks of the three sets, in order."""
    found: list[Chunk] = []
    for which, total in set_sizes(subject).items():
        if total == 0:
            continue
        size = min(subject.spec.evaluation.batch_size, -(-total // BLOCKS))
        count = -(-total // size)
        found += [
            Chunk(which, number, number * size, min((number + 1) * size, total), number * BLOCKS // max(BLOCKS, count))
            for number in range(count)
        ]
    return found


def training_chunks(subject: Subject) -> list[Chunk]:
    """All chunks of training rows, in order, of block 0."""
    total = len(training_rows(subject))
    size = max(1, min(MOST_IN_CHUNK, MOST_NUMBERS_IN_CHUNK // subject.layout.dimensions))
    return [
        Chunk(TRAINING, number, start, min(start + size, total), 0)
        for number, start in enumerate(range(0, total, size))
    ]


@dataclass(frozen=True)
class Embedded:
    """A chunk with its examples in the model's representation `[N, C, *space]`, their features `[N, D]` and, when asked
    for and there is a classifier, the class logits `[N, K]` of held-out and generated ones; float64 on the CPU."""

    chunk: Chunk
    x: Tensor
    features: Tensor
    logits: Tensor | None


def features_of(subject: Subject, taken: list[Chunk], with_logits: bool = False) -> Iterator[Embedded]:
    """Each chunk embedded.

    Raises: TrainingFailedError when the model gives samples that are not finite.
    """
    extractor, classifier = subject.extractor, subject.classifier
    if extractor is None:
        return
    order, rows = held_out_order(subject), training_rows(subject)
    was_training = subject.model.training
    subject.model.eval()
    try:
        for chunk in taken:
            with one_thread(), torch.no_grad():
                x = examples_of(subject, chunk, order, rows)
                batches = x.split(subject.spec.evaluation.batch_size)
                parts = [extractor.features(batch) for batch in batches]
                logits = None
                if with_logits and classifier is not None and chunk.which != TRAINING:
                    own = parts if classifier is extractor else [classifier.features(batch) for batch in batches]
                    logits = torch.cat([classifier.logits_of(part) for part in own]).cpu()
                features = torch.cat(parts).cpu()
            yield Embedded(chunk, x, features, logits)
    finally:
        subject.model.train(was_training)


def held_out_order(subject: Subject) -> Tensor:
    """The held-out rows in the order in which the two real sets take them, int64. Not by the run's seed: every run on
    this prepared set is compared with the same real examples."""
    return torch.randperm(subject.num_rows, generator=make_generator(0, "evaluation-real"))


def examples_of(subject: Subject, chunk: Chunk, order: Tensor, rows: Tensor) -> Tensor:
    """The chunk's examples in the model's representation. Raises: TrainingFailedError."""
    if chunk.which == "generated":
        generator = make_generator(subject.spec.seed, "evaluation-sample", chunk.number, device=subject.device)
        x = subject.model.sample(chunk.stop - chunk.start, generator, SamplingOptions())
        if not bool(torch.isfinite(x).all()):
            raise TrainingFailedError(
                f"evaluation: samples {chunk.start} to {chunk.stop} of the model hold values that are not "
                "finite, so its weights are broken; train again with a lower training.lr or a clip_norm"
            )
        return x
    if chunk.which == TRAINING:
        assert subject.prepared is not None
        return subject.layout.to_model(subject.prepared.load_rows("train", rows[chunk.start : chunk.stop]))
    first = set_sizes(subject)["real_a"] if chunk.which == "real_b" else 0
    return subject.layout.to_model(subject.arrays.x[order[first + chunk.start : first + chunk.stop]])
