"""The scores of generated pictures and sound: workers draw and embed, the driver has all features and scores them.

A piece of work gives the features of a chunk of examples under a name of its own, so that adding up what all ranks gave
is a union: the driver puts them together in order, whatever the number of workers, and no row is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pipeline.evaluation.diversity import inception_score, vendi_score
from pipeline.evaluation.drawing import (
    TRAINING,
    Chunk,
    chunks,
    features_of,
    smallest_set,
    training_chunks,
    training_rows,
)
from pipeline.evaluation.fidelity import distances, frechet_scores, moments_of, sample_protocol
from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.kernel_distance import kernel_distance
from pipeline.evaluation.manifolds import NEAREST, Manifold, neighbourhoods
from pipeline.evaluation.metric import DEFINITIONS, Metric, Score, Subject, add, blocks_of
from pipeline.evaluation.samples import SampleFeatures
from pipeline.models.base import Sums

OF_FEATURES = ("kid", "precision", "recall", "density", "coverage", "vendi_score")
OF_CLASSES = ("inception_score",)
FEATURES, LOGITS = "features", "logits"


class SampleScores(Metric):
    """Fréchet and kernel distance, precision, recall, density, coverage, Vendi and inception score, each with the same
    of real held-out examples beside it.

    Protocol: the sets of `drawing`: generated examples against the first of two real halves (the Fréchet distance:
    against both, and their mean), and as the reference the second half against the first. Units and directions are
    those of `DEFINITIONS`. Reduces by union; the intervals are jackknives over ten blocks of each set.
    """

    name = "samples"

    def _chunks(self, subject: Subject) -> list[Chunk]:
        if smallest_set(subject) < DEFINITIONS["frechet"].fewest:
            return []
        return [*chunks(subject), *training_chunks(subject)]

    def num_pieces(self, subject: Subject) -> int:
        return len(self._chunks(subject))

    def pieces(self, subject: Subject, rank: int, world_size: int) -> Iterator[Sums]:
        taken = self._chunks(subject)[rank::world_size]
        for chunk, features, logits in features_of(subject, taken, with_logits=True):
            found = {FEATURES: features} if logits is None else {FEATURES: features, LOGITS: logits}
            yield {f"{chunk.which}/{chunk.number:06d}/{kind}": value for kind, value in found.items()}

    def blocks(self, sums: Sums, subject: Subject) -> dict[int, Sums]:
        """The moments of each block, from which the Fréchet distance is computed."""
        total: Sums = {}
        for chunk in chunks(subject):
            add(total, moments_of(chunk, sums[f"{chunk.which}/{chunk.number:06d}/{FEATURES}"]))
        return dict(enumerate(blocks_of(total)))

    def scoring(self, blocks: Sequence[Sums], subject: Subject) -> Callable[[Sums], dict[str, float]]:
        return distances

    def finish(self, sums: Sums, subject: Subject) -> dict[str, Score]:
        if not sums or subject.extractor is None:
            return {}
        found = collected(sums, subject)
        examples, protocol = smallest_set(subject), sample_protocol(subject)
        scores = frechet_scores(list(self.blocks(sums, subject).values()), protocol, examples)
        for name, estimate in estimates(found).items():
            definition = DEFINITIONS[name]
            if definition.refusal(examples) is not None:
                continue
            stamped = dict(protocol)
            if name.removesuffix("_ceiling") in ("precision", "recall", "density", "coverage"):
                stamped["nearest"] = NEAREST
            if name.startswith(OF_CLASSES) and subject.classifier is not None:
                stamped["extractor"] = f"{subject.classifier.name}, classes"
                stamped["extractor_sha256"] = subject.classifier.sha256
            scores[name] = definition.score(estimate, stamped, examples)
        return scores

    def refusals(self, subject: Subject) -> dict[str, str]:
        if subject.extractor is None:
            return {}
        examples = smallest_set(subject)
        names = ("frechet", *OF_FEATURES, *(OF_CLASSES if subject.classifier is not None else ()))
        reasons = {name: DEFINITIONS[name].refusal(examples) for name in names}
        return {name: reason for name, reason in reasons.items() if reason is not None}


def collected(sums: Sums, subject: Subject) -> SampleFeatures:
    """What all ranks gave, in order."""
    extractor = subject.extractor
    assert extractor is not None

    def together(kind: str, *sets: str) -> Tensor | None:
        names = [
            name for which in sets for name in sorted(sums) if name.startswith(f"{which}/") and name.endswith(kind)
        ]
        return torch.cat([sums[name] for name in names]) if names else None

    generated, held_out = together(FEATURES, "generated"), together(FEATURES, "real_a", "real_b")
    assert generated is not None and held_out is not None
    training = together(FEATURES, TRAINING)
    return SampleFeatures(
        generated=generated,
        held_out=held_out,
        train=generated[:0] if training is None else training,
        generated_logits=together(LOGITS, "generated"),
        held_out_logits=together(LOGITS, "real_a", "real_b"),
        train_rows=training_rows(subject),
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
    )


def estimates(found: SampleFeatures) -> dict[str, Estimate]:
    """Every score but the Fréchet distance, of generated examples and of real ones, by its key."""
    size = len(found.held_out) // 2
    real_a, real_b = found.held_out[: len(found.held_out) - size], found.held_out[len(found.held_out) - size :]
    result: dict[str, Estimate] = {
        "kid": kernel_distance(found.generated, real_a),
        "kid_floor": kernel_distance(real_b, real_a),
    }
    generated, first, second = (Manifold.of(points) for points in (found.generated, real_a, real_b))
    result |= neighbourhoods(generated, first)
    result |= {f"{name}_ceiling": value for name, value in neighbourhoods(second, first).items()}
    result |= {"vendi_score": vendi_score(found.generated), "vendi_score_ceiling": vendi_score(real_b)}
    if found.generated_logits is not None and found.held_out_logits is not None:
        result |= {
            "inception_score": inception_score(found.generated_logits),
            "inception_score_ceiling": inception_score(found.held_out_logits[-size:]),
        }
    return result
