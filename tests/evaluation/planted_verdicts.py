"""Planted models on the way that trained ones take: samples, features, scores, evidence, verdict."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.evaluation.evidence import Evidence, evidence_of_values
from pipeline.evaluation.features import ClassifierConfig, ClassifierExtractor, train_classifier
from pipeline.evaluation.fidelity import frechet_distance, gaussian, moments
from pipeline.evaluation.sample_novelty import SampleSignals, measure_sample_novelty
from pipeline.evaluation.sample_scores import estimates
from pipeline.evaluation.samples import SampleFeatures
from pipeline.evaluation.text_evidence import text_evidence
from pipeline.evaluation.verdict import Question, Verdict, judge
from pipeline.models.base import GenerativeModel, SamplingOptions, make_generator
from tests.evaluation.planted_models import KINDS, Corpus, plant

NAMES: dict[str, tuple[str, ...]] = {
    "held_out": (),
    "copier": ("copies",),
    "collapsed": ("collapsed",),
    "blurred": ("blurred",),
    "noise": ("noise",),
}
"""The findings that each planted model must have, and no other."""
ANSWERED_NO: dict[str, Question] = {"copier": "new", "collapsed": "varied", "blurred": "good", "noise": "good"}


@dataclass(frozen=True)
class Scored:
    """The evidence on a planted model and the verdict on it."""

    evidence: dict[str, Evidence]
    verdict: Verdict

    def right(self, kind: str) -> bool:
        """Whether the failure of `kind`, and no other, is named and its question answered with no."""
        if self.verdict.findings != NAMES[kind]:
            return False
        if kind == "held_out":
            return set(self.verdict.answers.values()) == {"yes"}
        return self.verdict.answers[ANSWERED_NO[kind]] == "no"


class Suite:
    """Scores models on a corpus; of pictures and sound, by a classifier trained in `steps` steps."""

    def __init__(self, corpus: Corpus, steps: int = 100) -> None:
        self.corpus = corpus
        if corpus.modality == "text":
            self.texts, self.training = corpus.texts(corpus.held_out), corpus.texts(corpus.train)
            return
        layout = corpus.layout
        classifier = train_classifier(layout, corpus.arrays(), ClassifierConfig(steps=steps))
        self.extractor = ClassifierExtractor(classifier, layout, "classifier", "none", None)
        self.held_out, self.train = layout.to_model(corpus.held_out), layout.to_model(corpus.train)
        self.of_held_out, self.of_train = self.features(self.held_out), self.features(self.train)

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([self.extractor.features(part) for part in x.split(500)])

    def score(self, kind: str, seed: int = 0) -> Scored:
        return self.score_model(plant(self.corpus, kind), seed)

    def score_model(self, model: GenerativeModel, seed: int) -> Scored:
        """As many samples as half of the held-out examples, scored."""
        count = len(self.corpus.held_out) // 2
        x = model.sample(count, make_generator(seed, "planted-samples"), SamplingOptions())
        if self.corpus.modality == "text":
            texts = [str(self.corpus.codec.decode(row.numpy())) for row in x]
            evidence = text_evidence(texts, self.texts[:count], self.texts[count : 2 * count], [self.training])
            return Scored(evidence, judge(evidence))
        rows = torch.arange(len(self.train))
        features = SampleFeatures(
            self.features(x), self.of_held_out, self.of_train, None, None, rows, self.extractor.name, "none"
        )
        novelty = measure_sample_novelty(features, SampleSignals(x, self.held_out, self.train, rows), seed)
        first, second = (gaussian(moments(part)) for part in self.of_held_out.split(count)[:2])
        distance = frechet_distance(*gaussian(moments(features.generated)), *first)
        evidence = evidence_of_values(
            estimates(features)
            | novelty.estimates
            | {"frechet": (distance, None), "frechet_floor": (frechet_distance(*second, *first), None)}
        )
        return Scored(evidence, judge(evidence))


__all__ = ["KINDS", "NAMES", "Scored", "Suite"]
