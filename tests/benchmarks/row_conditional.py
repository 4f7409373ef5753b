"""Label-conditional VAEs: of samples asked for each digit equally often, a classifier of real examples reads most so.

    python -m tests.benchmarks.row_conditional --data ../shared/data [--only mnist|fsdd]

The classifier is the corpus's own, trained on the real training split; what it reads of real test examples stands
beside (`real`), and what it reads of samples that were written as files and read again (`from_files`): a sound has gone
through Griffin-Lim then. Two lines, a corpus each.
"""

from __future__ import annotations

import numpy as np
import torch

from pipeline.evaluation.features import ClassifierExtractor, find_or_train_extractor
from pipeline.generation.asking import in_turn, with_wishes
from pipeline.generation.sampling import SamplingOptions, draw
from tests.benchmarks.rows import TrainedRow, options, print_row, train

ROWS = {
    "mnist": ("mnist_conditional_vae", "MNIST", "image/mnist.npz", (0.9, 0.97)),
    "fsdd": ("fsdd_conditional_vae", "FSDD", "audio/fsdd.tar.xz", (0.7, 0.85)),
}
FILES = 500


def read_from_files(row: TrainedRow) -> float:
    """The share of `FILES` samples that are read as asked after they were decoded, and encoded again."""
    bundle, layout = row.bundle, row.prepared.layout
    wishes = in_turn(row.spec, layout, FILES)
    raws = draw(bundle, FILES, row.spec.seed, with_wishes(layout, wishes, SamplingOptions()))
    x = layout.to_model(torch.from_numpy(np.stack([bundle.codec.encode(raw) for raw in raws])))
    classifier = find_or_train_extractor(row.prepared, row.spec.evaluation.split)
    assert isinstance(classifier, ClassifierExtractor)
    read = classifier.logits_of(classifier.features(x)).argmax(1).tolist()
    return sum(layout.labels[place] == wish.label for place, wish in zip(read, wishes, strict=True)) / FILES


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", choices=ROWS, help="one of the two corpora")
    told = parser.parse_args()
    for name, (conf, corpus, file, targets) in ROWS.items():
        if told.only not in (None, name):
            continue
        row, target = train(told, conf, file), targets[told.gpu]
        scores = row.scores()
        accuracy, real = scores["test/condition_accuracy"], scores["test/condition_accuracy_ceiling"]
        assert accuracy.interval is not None
        print_row(
            "label-conditional",
            corpus,
            f">= {target} of {accuracy.protocol['asked']:,} samples are read as asked",
            accuracy.value >= target,
            row,
            read_as_asked=accuracy.value,
            low=accuracy.interval[0],
            high=accuracy.interval[1],
            from_files=read_from_files(row),
            real=real.value,
            classification_accuracy_score=scores["test/classification_accuracy"].value,
            nll_nats=scores["test/nll_nats"].value,
        )


if __name__ == "__main__":
    main()
