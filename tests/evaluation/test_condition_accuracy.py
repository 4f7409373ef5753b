"""Samples read as asked: right on a model that does what it is told with a known rate, and the same over any
workers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.data.builtin import BUILTINS
from pipeline.data.layout import Layout
from pipeline.data.prompts import decode_prompt
from pipeline.evaluation.classification_score import classification_accuracy
from pipeline.evaluation.compare import labels_of
from pipeline.evaluation.condition_accuracy import ConditionAccuracy, num_asked, readings
from pipeline.evaluation.definitions import DEFINITIONS
from pipeline.evaluation.evaluate import METRICS, load_subject
from pipeline.evaluation.features import Classifier, ClassifierConfig, ClassifierExtractor, find_prompt_classifier
from pipeline.evaluation.metric import Subject, add
from pipeline.models.base import SamplingOptions
from pipeline.spec import ConditionSpec, PromptSpec
from tests.evaluation.conftest import MLP, PICTURES, pictures
from tests.evaluation.planted_models import Planted

# In the other order than the labels.
WORDS = {"right": "to the right", "left": "to the left"}
VAE = {"kind": "vae", "latent_size": 4}


class Obedient(Planted):
    """Draws real examples of the label that it is asked for; of every `every`-th sample, of another."""

    def __init__(self, subject: Subject, every: int) -> None:
        super().__init__(subject.layout, lambda count, generator: torch.zeros(count))
        arrays = subject.prepared.load_split("train")
        self.of = [subject.layout.to_model(arrays.x[arrays.label == place]) for place in range(len(self.layout.labels))]
        self.every, self.drawn = every, 0

    def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> torch.Tensor:
        assert isinstance(options.asked_label, tuple) and len(options.asked_label) == count
        rows = []
        for place in options.asked_label:
            wrong = self.every and int(torch.randint(self.every, (1,), generator=generator)) == 0
            own = self.of[(place + int(wrong)) % len(self.of)]
            rows.append(own[int(torch.randint(len(own), (1,), generator=generator))])
        return torch.stack(rows)


@pytest.fixture
def subject_of(spec_of, prepare_small, bundle_of, short_extractors):
    def make(every: int = 0, words=None, **evaluation) -> Subject:
        spec = spec_of(PICTURES, VAE, MLP, samples=400, **evaluation)
        prepared = prepare_small(spec, {"train": pictures(130), "test": pictures(110, seed=1)}, words)
        subject = load_subject(spec, prepared, bundle_of(spec, prepared), torch.device("cpu"))
        condition = spec.model.model_copy(update={"condition": ConditionSpec(on=("label",))})
        subject = replace(subject, spec=spec.model_copy(update={"model": condition}))
        return replace(subject, model=Obedient(subject, every))

    return make


def test_a_model_that_is_wrong_in_a_known_share_of_samples_is_found_out(subject_of):
    for every, expected in ((0, 1.0), (4, 0.75)):
        subject = subject_of(every)
        scores = ConditionAccuracy().finish(ConditionAccuracy().measure(subject), subject)
        score = scores["condition_accuracy"]
        assert score.value == pytest.approx(expected, abs=0.06)
        low, high = score.interval
        assert low <= score.value <= high and 0 < high - low < 0.2
        assert score.protocol["asked"] == 400 and score.protocol["classes"] == 2
        assert score.protocol["extractor_sha256"] == subject.classifier.sha256
        assert [one["asked"] for one in score.shown] == ["left", "right"]
        taught = scores["classification_accuracy"]
        assert 0 <= taught.interval[0] <= taught.value <= taught.interval[1] <= 1
        assert "extractor" not in taught.protocol and taught.protocol["asked"] == 400
        assert scores["condition_accuracy_ceiling"].value == 1.0


def test_one_and_three_workers_give_the_same_score(subject_of):
    subject, metric = subject_of(3), ConditionAccuracy()
    whole = metric.finish(metric.measure(subject), subject)
    total = {}
    for rank in range(3):
        add(total, metric.measure(subject, rank, 3))
    assert metric.finish(total, subject) == whole


def test_a_model_without_conditions_has_no_such_score(subject_of):
    subject = subject_of()
    plain = replace(subject, spec=subject.spec.model_copy(update={"model": spec_without(subject)}))
    assert ConditionAccuracy().num_pieces(plain) == 0
    assert ConditionAccuracy().finish(ConditionAccuracy().measure(plain), plain) == {}
    assert ConditionAccuracy().refusals(plain) == {}


def test_a_prompt_that_stands_for_a_label_is_asked_and_read_as_that_label(subject_of):
    subject = subject_of()
    prompted = subject.spec.model.model_copy(update={"condition": ConditionSpec(on=("prompt",))})
    data = subject.spec.data.model_copy(update={"prompt": PromptSpec(words={"left": "to the left"}, length=16)})
    spec = subject.spec.model_copy(update={"model": prompted, "data": data})
    layout = replace(subject.layout, prompts=("right", "to the left"), prompt_length=16)
    told: list[SamplingOptions] = []
    obedient = subject.model

    class Reads(Planted):
        def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> torch.Tensor:
            told.append(options)
            places = tuple(int(tokens[1] != ord("t")) for tokens in options.asked_prompt)
            return obedient.sample(count, generator, SamplingOptions(asked_label=places))

    subject = replace(subject, spec=spec, layout=layout, model=Reads(layout, lambda count, generator: None))
    scores = ConditionAccuracy().finish(ConditionAccuracy().measure(subject), subject)
    assert scores["condition_accuracy"].value == 1.0 and told[0].asked_label is None
    assert [one["asked"] for one in scores["condition_accuracy"].shown] == ["“to the left”", "“right”"]


def test_prompts_that_are_no_labels_are_read_by_a_classifier_of_their_own(subject_of):
    subject = subject_of(words=WORDS)
    prompted = subject.spec.model.model_copy(update={"condition": ConditionSpec(on=("label", "prompt"))})
    data = subject.spec.data.model_copy(update={"prompt": PromptSpec(of="source", length=16)})
    obedient, told = subject.model, list[SamplingOptions]()

    class Reads(Planted):
        def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> torch.Tensor:
            told.append(options)
            places = options.asked_label
            if options.asked_prompt is not None:
                places = tuple(
                    int(decode_prompt(np.array(tokens)) == WORDS["right"]) for tokens in options.asked_prompt
                )
            return obedient.sample(count, generator, SamplingOptions(asked_label=places))

    layout = subject.prepared.layout
    spec = subject.spec.model_copy(update={"model": prompted, "data": data})
    subject = replace(subject, spec=spec, model=Reads(layout, lambda count, generator: None))
    subject = replace(subject, prompt_classifier=find_prompt_classifier(spec, subject.prepared))
    scores = ConditionAccuracy().finish(ConditionAccuracy().measure(subject), subject)
    assert scores["prompt_accuracy"].value == scores["prompt_accuracy_ceiling"].value == 1.0
    assert scores["condition_accuracy"].value == 1.0
    digests = {scores[key].protocol["extractor_sha256"] for key in ("prompt_accuracy", "condition_accuracy")}
    assert len(digests) == 2
    assert [(options.asked_label is None) != (options.asked_prompt is None) for options in told] == [True] * len(told)


@pytest.mark.slow
def test_samples_that_are_right_but_always_the_same_teach_a_classifier_little():
    layout = Layout("image", "signal", (1, 28, 28), "uint8", "bernoulli", scale=1 / 255, labels=tuple("0123456789"))
    items = list(BUILTINS["digits"].items())
    x = layout.to_model(torch.from_numpy(np.stack([raw for raw, _ in items]))).unsqueeze(1)
    label = torch.tensor([int(text) for _, text in items])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    real, train = order[:1000], order[1000:]
    config = ClassifierConfig(steps=150)
    read_by = ClassifierExtractor(Classifier(layout, config), layout, "any", "", None)
    first = torch.stack([train[label[train] == digit][0] for digit in range(10)])
    collapsed = first.repeat(100)
    varied, narrow = (
        classification_accuracy(x[rows], label[rows], x[real], label[real], read_by) for rows in (train, collapsed)
    )
    assert varied[0] > 0.85 and narrow[0] < 0.65
    assert varied[1][0] < varied[0] < varied[1][1]


def test_too_few_samples_are_refused_in_words(subject_of):
    subject = subject_of()
    few = subject.spec.evaluation.model_copy(update={"samples": 11})
    subject = replace(subject, spec=subject.spec.model_copy(update={"evaluation": few}))
    assert num_asked(subject, *readings(subject)) == 10 and ConditionAccuracy().num_pieces(subject) == 0
    assert "10 examples" in ConditionAccuracy().refusals(subject)["condition_accuracy"]


def test_labels_of_another_set_are_read_by_their_names():
    label = torch.tensor([0, 1, 2, -1, 1])
    assert labels_of(label, ("a", "b", "c"), ("c", "a")).tolist() == [1, -1, 0, -1, -1]
    assert labels_of(label, ("a", "b", "c"), ("a", "b", "c")) is label


def test_every_evaluation_asks_and_explains():
    assert ConditionAccuracy in METRICS.values()
    assert DEFINITIONS.keys() >= {
        f"{key}_accuracy{companion}" for key in ("condition", "prompt") for companion in ("", "_ceiling")
    }


def spec_without(subject: Subject):
    return subject.spec.model.model_copy(update={"condition": ConditionSpec()})
