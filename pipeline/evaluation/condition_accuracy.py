"""Whether samples are what they were asked for: classifiers of real examples read them.

Plain PyTorch, on any worker. Every label is asked for equally often, whatever the corpus's frequencies, and read by the
corpus's own classifier; where a model takes no label but a prompt that stands for one, that is asked for. Prompts that
are no labels, where they are few, are asked for in turn and read by a classifier of their own. Samples are drawn for
these scores alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.data.prompts import prompt_numbers
from pipeline.evaluation.classification_score import (
    DEFINITIONS_OF_CLASSIFICATION,
    MOST_NUMBERS,
    classification_accuracy,
)
from pipeline.evaluation.compare import labels_of
from pipeline.evaluation.drawing import BLOCKS
from pipeline.evaluation.extractors.classifier import ClassifierExtractor
from pipeline.evaluation.extractors.encoder import one_thread
from pipeline.evaluation.intervals import Estimate, share
from pipeline.evaluation.metric import Metric, Score, Subject, blocks_of, in_block, total_of, with_intervals
from pipeline.evaluation.score import Definition
from pipeline.generation.asking import Takes, Wish, with_wishes
from pipeline.models.base import SamplingOptions, Sums, make_generator

DEFINITIONS_OF_CONDITIONS: dict[str, Definition] = {
    "condition_accuracy": Definition(
        "Samples read as asked",
        "share",
        "higher",
        "Every label is asked for equally often, and the corpus's own classifier says what each sample is of: the "
        "share that it reads as asked. It does not see whether the samples of a label are varied, so read it beside "
        "the scores of variety.",
        fewest=20,
        enough=500,
    ),
    "prompt_accuracy": Definition(
        "Samples that say what the prompt says",
        "share",
        "higher",
        "Every prompt of the training split is asked for equally often, and a classifier that was trained to tell real "
        "examples by their prompts reads the samples: the share that it reads as asked.",
        fewest=20,
        enough=500,
    ),
    "prompt_accuracy_ceiling": Definition(
        "Real examples whose prompt is read right",
        "share",
        None,
        "The share of held-out examples whose prompt the same classifier reads, the mean over prompts: what samples as "
        "good as real ones would score.",
        fewest=20,
        enough=500,
    ),
    "condition_accuracy_ceiling": Definition(
        "Real examples read right",
        "share",
        None,
        "The share of held-out examples whose label the same classifier reads, the mean over labels: what samples as "
        "good as real ones would score.",
        fewest=20,
        enough=500,
    ),
    **DEFINITIONS_OF_CLASSIFICATION,
}
SAMPLE, CLASS = "sample", "class"


@dataclass(frozen=True)
class Reading:
    """One thing that is asked for and read: the score's `key`, the `classifier` that reads, for each class that can be
    asked for a wish and the class's number, and the class of each scored held-out row, int64 `[N]`, -1 for none."""

    key: str
    classifier: ClassifierExtractor
    wishes: tuple[Wish, ...]
    classes: tuple[int, ...]
    held_out: Tensor

    @property
    def num_classes(self) -> int:
        return len(self.classifier.layout.labels)


class ConditionAccuracy(Metric):
    """`condition_accuracy`: of `evaluation.samples` samples, as many of each label, the share that the classifier reads
    as asked, higher is better; `condition_accuracy_ceiling`: of held-out examples, the mean over labels. Likewise
    `prompt_accuracy`, of prompts; and `classification_accuracy` of the samples of labels.

    Protocol: the numbers of samples and classes, the classifier and its hash, and its accuracy. Reduces by adding
    counts for each class; the interval is a jackknife over ten blocks.
    """

    name = "condition"

    def num_pieces(self, subject: Subject) -> int:
        return sum(len(_work(subject, reading)) for reading in readings(subject))

    def pieces(self, subject: Subject, rank: int, world_size: int) -> Iterator[Sums]:
        work = [(reading, *piece) for reading in readings(subject) for piece in _work(subject, reading)]
        was_training = subject.model.training
        subject.model.eval()
        try:
            for reading, which, start in work[rank::world_size]:
                of_samples = which == "asked"
                with one_thread(), torch.no_grad():
                    total = num_asked(subject, reading) if of_samples else subject.num_rows
                    stop = min(start + chunk_size(subject, total), total)
                    chunk = _samples if of_samples else _real_examples
                    x, wanted = chunk(subject, reading, start, stop)
                    read = _read(reading.classifier, x) if len(x) else wanted
                    found = _counts(which, wanted, read, reading.num_classes)
                    if of_samples and total * subject.layout.dimensions <= MOST_NUMBERS:
                        found |= {f"{SAMPLE}/{start:06d}": x.float().cpu(), f"{CLASS}/{start:06d}": wanted}
                    named = {f"{reading.key}/{name}": value for name, value in found.items()}
                    yield in_block(start * BLOCKS // total, named)
        finally:
            subject.model.train(was_training)

    def scoring(self, blocks: Sequence[Sums], subject: Subject) -> Callable[[Sums], dict[str, float]]:
        return accuracies

    def finish(self, sums: Sums, subject: Subject) -> dict[str, Score]:
        scores: dict[str, Score] = {}
        blocks = blocks_of(sums) if sums else []
        for reading in readings(subject) if sums else []:
            classifier = reading.classifier
            protocol = subject.protocol(
                asked=num_asked(subject, reading),
                classes=len(reading.classes),
                extractor=f"{classifier.name}, classes",
                extractor_sha256=classifier.sha256,
            )
            if classifier.accuracy is not None:
                protocol["extractor_accuracy"] = round(classifier.accuracy, 4)
            for which, companion in (("asked", ""), ("real", "_ceiling")):
                name, key = f"{reading.key}/{which}/count", f"{reading.key}_accuracy{companion}"
                own = [block for block in blocks if name in block]
                count = round(sum(float(block[name].sum()) for block in own))
                if count >= DEFINITIONS_OF_CONDITIONS[key].fewest:
                    estimate: Estimate = share(with_intervals(own, accuracies)[key], count)
                    scores[key] = DEFINITIONS_OF_CONDITIONS[key].score(estimate, protocol, count)
            if f"{reading.key}_accuracy" in scores:
                scores[f"{reading.key}_accuracy"] = replace(
                    scores[f"{reading.key}_accuracy"], shown=_shown(reading, total_of(blocks))
                )
            if reading.key == "condition":
                scores |= _taught(subject, reading, total_of(blocks), protocol)
        return scores

    def refusals(self, subject: Subject) -> dict[str, str]:
        found = {}
        for reading in readings(subject):
            key = f"{reading.key}_accuracy"
            reason = DEFINITIONS_OF_CONDITIONS[key].refusal(num_asked(subject, reading))
            if reason is not None:
                found[key] = reason
        return found


def readings(subject: Subject) -> list[Reading]:
    """What the subject's samples can be asked for and read by; nothing without a classifier, or such a wish."""
    takes, prompt = Takes.of(subject.spec, subject.layout), subject.spec.data.prompt
    classifier, found = subject.classifier, list[Reading]()
    label = subject.arrays.label[: subject.num_rows]
    if classifier is not None and (takes.labels or (takes.prompt_length and prompt and prompt.of == "label")):
        classes = classifier.layout.labels
        if takes.labels:
            known = [(Wish(label=name), classes.index(name)) for name in takes.labels if name in classes]
        else:
            assert prompt is not None
            known = [(Wish(prompt=prompt.words.get(name, name)), place) for place, name in enumerate(classes)]
        # Of labels as the classifier has them, which a model of another set may number otherwise.
        found += _reading("condition", classifier, known, labels_of(label, subject.layout.labels, classes))
    classifier, tokens = subject.prompt_classifier, subject.arrays.prompt
    if classifier is not None and takes.prompt_length and tokens is not None:
        known = [(Wish(prompt=text), place) for place, text in enumerate(classifier.layout.labels)]
        places = prompt_numbers(tokens[: subject.num_rows].numpy(), classifier.layout.labels)
        found += _reading("prompt", classifier, known, torch.from_numpy(places))
    return found


def _reading(
    key: str, classifier: ClassifierExtractor, known: list[tuple[Wish, int]], held_out: Tensor
) -> list[Reading]:
    if not known:
        return []
    wishes, classes = zip(*known, strict=True)
    return [Reading(key, classifier, wishes, classes, held_out)]


def num_asked(subject: Subject, reading: Reading) -> int:
    """Samples that are drawn: `evaluation.samples`, or so many fewer that every wish has as many."""
    return subject.spec.evaluation.samples // len(reading.wishes) * len(reading.wishes)


def chunk_size(subject: Subject, total: int) -> int:
    """Examples in a piece of work: `evaluation.batch_size`, or fewer where a small set would not fill all blocks."""
    return max(1, min(subject.spec.evaluation.batch_size, -(-total // BLOCKS)))


def accuracies(sums: Sums) -> dict[str, float]:
    """The mean over classes of the share that was read right, of samples and of real examples, where there are any."""
    found = {}
    for key in ("condition", "prompt"):
        for which, companion in (("asked", ""), ("real", "_ceiling")):
            if f"{key}/{which}/count" in sums:
                count, right = sums[f"{key}/{which}/count"], sums[f"{key}/{which}/right"]
                shares = right[count > 0] / count[count > 0]
                found[f"{key}_accuracy{companion}"] = float(shares.mean()) if len(shares) else 0.0
    return found


def _work(subject: Subject, reading: Reading) -> list[tuple[str, int]]:
    """Which set each piece of work is of, and its first example; nothing where too few samples would be drawn."""
    asked, real = num_asked(subject, reading), subject.num_rows
    if asked < DEFINITIONS_OF_CONDITIONS[f"{reading.key}_accuracy"].fewest:
        return []
    sets = (("asked", asked), ("real", real))
    return [(which, start) for which, total in sets for start in range(0, total, chunk_size(subject, total))]


def _samples(subject: Subject, reading: Reading, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Samples `[N, C, *space]` that are asked for each class in turn, and the classes, int64 `[N]`."""
    places = [i % len(reading.wishes) for i in range(start, stop)]
    options = with_wishes(subject.layout, [reading.wishes[place] for place in places], SamplingOptions())
    stream = f"evaluation-{reading.key}"
    generator = make_generator(subject.spec.seed, stream, start, device=subject.device)
    x = subject.model.sample(len(places), generator, options)
    return x, torch.tensor([reading.classes[place] for place in places])


def _real_examples(subject: Subject, reading: Reading, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Held-out examples `[N, C, *space]` that have a class, and the classes, int64 `[N]`."""
    wanted = reading.held_out[start:stop]
    known = wanted >= 0
    return subject.layout.to_model(subject.arrays.x[start:stop][known]), wanted[known]


def _read(classifier: ClassifierExtractor, x: Tensor) -> Tensor:
    """The class that each example is read as, int64 `[N]`."""
    return classifier.logits_of(classifier.features(x)).argmax(1).cpu()


def _counts(which: str, wanted: Tensor, read: Tensor, classes: int) -> Sums:
    """How many of each class there are and were read right, float64 `[K]`."""
    return {
        f"{which}/count": torch.bincount(wanted, minlength=classes).double(),
        f"{which}/right": torch.bincount(wanted[wanted == read], minlength=classes).double(),
    }


def _taught(subject: Subject, reading: Reading, total: Sums, protocol: dict[str, Any]) -> dict[str, Score]:
    """What a classifier that learned from the samples tells of the held-out examples, where both are enough."""
    names = sorted(name for name in total if name.startswith(f"{reading.key}/{SAMPLE}/"))
    real, wanted = _real_examples(subject, reading, 0, subject.num_rows)
    definition = DEFINITIONS_OF_CLASSIFICATION["classification_accuracy"]
    if not names or min(num_asked(subject, reading), len(wanted)) < definition.fewest:
        return {}
    generated = torch.cat([total[name] for name in names])
    asked = torch.cat([total[name.replace(f"/{SAMPLE}/", f"/{CLASS}/")] for name in names])
    estimate = classification_accuracy(generated, asked, real, wanted, reading.classifier)
    stamped = {key: value for key, value in protocol.items() if not key.startswith("extractor")}
    return {
        "classification_accuracy": definition.score(estimate, stamped, min(len(generated), len(wanted))),
    }


def _shown(reading: Reading, total: Sums) -> tuple[dict[str, Any], ...]:
    """The share of each wish."""
    count, right = total[f"{reading.key}/asked/count"], total[f"{reading.key}/asked/right"]
    return tuple(
        {"asked": wish.in_words(), "accuracy": float(right[place] / count[place])}
        for wish, place in zip(reading.wishes, reading.classes, strict=True)
        if count[place]
    )
