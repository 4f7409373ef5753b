"""The scores of generated pictures and sound: workers draw and embed, the driver has all features and scores them.

A piece of work gives the features of a chunk of examples under a name of its own, so that adding up what all ranks gave
is a union: the driver puts them together in order, whatever the number of workers, and no row is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.diversity import inception_score, vendi_score
from pipeline.evaluation.drawing import (
    TRAINING,
    Chunk,
    chunks,
    features_of,
    held_out_order,
    set_sizes,
    smallest_set,
    training_chunks,
    training_rows,
)
from pipeline.evaluation.fidelity import distances, frechet_scores, moments_of, sample_protocol
from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.kernel_distance import kernel_distance
from pipeline.evaluation.manifolds import NEAREST, Manifold, neighbourhoods
from pipeline.evaluation.metric import DEFINITIONS, Metric, Score, Subject, add, blocks_of
from pipeline.evaluation.sample_novelty import FEWEST, SampleSignals, measure_sample_novelty
from pipeline.evaluation.samples import SampleFeatures
from pipeline.models.base import Sums

OF_FEATURES = ("kid", "precision", "recall", "density", "coverage", "vendi_score")
MOST_SHOWN = 8
OF_CLASSES = ("inception_score",)
FEATURES, LOGITS, SIGNAL = "features", "logits", "signal"
MOST_NUMBERS = 2**25
"""Of each set, so many pixels or samples are compared as they are (128 MiB); of larger ones the first, or of training
examples as many at equal distances. Features are of all."""


class SampleScores(Metric):
    """Fréchet and kernel distance, precision, recall, density, coverage, Vendi and inception score, each with the same
    of real held-out examples beside it.

    Protocol: the sets of `drawing`: generated examples against the first of two real halves (the Fréchet distance:
    against both, and their mean), and as the reference the second half against the first. Units and directions are
    those of `DEFINITIONS`. Reduces by union; each function says how its interval is taken.
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
        most = most_signals(subject)
        for embedded in features_of(subject, taken, with_logits=True):
            chunk, found = embedded.chunk, {FEATURES: embedded.features}
            if embedded.logits is not None:
                found[LOGITS] = embedded.logits
            if chunk.which == "generated" and chunk.start < most:
                found[SIGNAL] = embedded.x[: most - chunk.start].float().cpu()
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
        enough = any(DEFINITIONS[name].refusal(examples) is None for name in OF_FEATURES)
        for name, estimate in (estimates(found) if enough else {}).items():
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
        return scores | self._newness(found, sums, subject, protocol)

    def _newness(
        self, found: SampleFeatures, sums: Sums, subject: Subject, protocol: dict[str, Any]
    ) -> dict[str, Score]:
        """Scores of novelty, repeats and detail; the most similar pairs are shown under `singled_out`."""
        examples = smallest_set(subject)
        if examples < FEWEST or len(found.train) < FEWEST:
            return {}
        signals = signals_of(sums, subject)
        novelty = measure_sample_novelty(found, signals, subject.spec.seed)
        stamped = {**protocol, "training": len(found.train), "training_as_signals": len(signals.train)}
        scores = {
            key: DEFINITIONS[key].score(estimate, stamped, examples) for key, estimate in novelty.estimates.items()
        }
        for key, pairs in (
            ("singled_out", novelty.by_features.pairs),
            ("signal_singled_out", novelty.by_signals.pairs),
        ):
            if key in scores:
                scores[key] = replace(scores[key], shown=tuple(asdict(pair) for pair in pairs[:MOST_SHOWN]))
        return scores

    def refusals(self, subject: Subject) -> dict[str, str]:
        if subject.extractor is None:
            return {}
        examples = smallest_set(subject)
        names = ("frechet", *OF_FEATURES, *(OF_CLASSES if subject.classifier is not None else ()))
        reasons = {name: DEFINITIONS[name].refusal(examples) for name in names}
        return {name: reason for name, reason in reasons.items() if reason is not None}


def most_signals(subject: Subject) -> int:
    """Examples of a set that are compared as they are."""
    return max(FEWEST, MOST_NUMBERS // subject.layout.dimensions)


def signals_of(sums: Sums, subject: Subject) -> SampleSignals:
    """The examples themselves: generated ones as all ranks gave them, held-out and training ones from their split."""
    assert subject.prepared is not None
    most = most_signals(subject)
    names = sorted(name for name in sums if name.startswith("generated/") and name.endswith(SIGNAL))
    sizes = set_sizes(subject)
    held_out = held_out_order(subject)[: sizes["real_a"] + sizes["real_b"]][:most]
    rows = training_rows(subject)
    rows = rows[torch.arange(min(most, len(rows))) * len(rows) // min(most, len(rows))]
    return SampleSignals(
        generated=torch.cat([sums[name] for name in names]),
        held_out=subject.layout.to_model(subject.arrays.x[held_out]),
        train=subject.layout.to_model(subject.prepared.load_rows("train", rows)),
        train_rows=rows,
    )


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
    generated, first = Manifold.of(found.generated, "generated"), Manifold.of(real_a, "real")
    second = Manifold.of(real_b, "generated")
    result |= neighbourhoods(generated, first)
    result |= {f"{name}_ceiling": value for name, value in neighbourhoods(second, first).items()}
    result |= {"vendi_score": vendi_score(found.generated), "vendi_score_ceiling": vendi_score(real_b)}
    if found.generated_logits is not None and found.held_out_logits is not None:
        result |= {
            "inception_score": inception_score(found.generated_logits),
            "inception_score_ceiling": inception_score(found.held_out_logits[-size:]),
        }
    return result
