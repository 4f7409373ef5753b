"""The classification accuracy score: what a classifier that learned from generated examples alone tells of real ones.

Plain PyTorch, on the driver, from the samples that were drawn for `condition_accuracy`. A model whose samples are of
the right class, but always the same few, teaches a classifier little (Ravuri and Vinyals 2019).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.data.prepared import SplitArrays
from pipeline.evaluation.extractors.classifier import ClassifierConfig, ClassifierExtractor, train_classifier
from pipeline.evaluation.extractors.encoder import one_thread
from pipeline.evaluation.intervals import Estimate, binomial
from pipeline.evaluation.score import Definition

DEFINITIONS_OF_CLASSIFICATION: dict[str, Definition] = {
    "classification_accuracy": Definition(
        "Classification accuracy score",
        "share",
        "higher",
        "A classifier is trained on generated examples alone, labelled by what they were asked for, and reads real "
        "held-out ones: the share it reads right. Hold it against what the same network reads that was trained on real "
        "examples (condition_accuracy_ceiling): what is missing is quality or variety within the classes. It saw fewer "
        "examples than that one.",
        fewest=100,
        enough=1000,
    ),
}
MOST_NUMBERS = 2**25
"""Of all samples together that are kept for it (128 MiB)."""


def classification_accuracy(
    generated: Tensor, asked: Tensor, real: Tensor, wanted: Tensor, classifier: ClassifierExtractor
) -> Estimate:
    """The share of `real` `[M, C, *space]` whose class `wanted` int64 `[M]` is read by a network like `classifier`'s
    that was trained on `generated` `[N, C, *space]` of classes `asked` int64 `[N]`; its interval is binomial.

    Source: Ravuri and Vinyals (2019), section 3.
    """
    config = classifier.classifier.config
    assert isinstance(config, ClassifierConfig)
    # The examples are in the model's representation already.
    layout = replace(classifier.layout, scale=1.0, offset=0.0)
    arrays = SplitArrays(generated, asked, [], torch.zeros(0, dtype=torch.int64))
    network = train_classifier(layout, arrays, config)
    with one_thread(), torch.no_grad():
        read = torch.cat([network(part).argmax(1) for part in real.split(200)])
    right = int((read == wanted).sum())
    return right / len(wanted), binomial(right, len(wanted))
