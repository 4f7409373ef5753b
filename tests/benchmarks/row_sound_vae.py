"""Sound VAE on spoken digits: a classifier reads what is left of test clips after code, Griffin-Lim and sound.

    python -m tests.benchmarks.row_sound_vae --data ../shared/data

The classifier is the corpus's own, trained on its real training clips. Each test clip goes to the mean of its
posterior, back to a log-mel, by Griffin-Lim to a waveform, and from that waveform to the log-mel that the classifier
sees. Beside the share that it reads then stand the share of the clips themselves and of those after Griffin-Lim alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.data.codec import Codec
from pipeline.evaluation.features import ClassifierExtractor, find_or_train_extractor
from pipeline.models.conditioning import Asked
from pipeline.models.vae_signals import SignalVae
from tests.benchmarks.rows import options, print_row, train

TARGETS = 0.85, 0.93
"""On two cores, on a GPU."""


def heard(x: Tensor, codec: Codec) -> Tensor:
    """Log-mels `[N, 1, mels, frames]` as sound, and that sound's log-mels."""
    return torch.from_numpy(np.stack([codec.encode(codec.decode(example)) for example in x.numpy()]))


def main() -> None:
    told = options(__doc__).parse_args()
    row, target = train(told, "fsdd_vae", "audio/fsdd.tar.xz"), TARGETS[told.gpu]
    bundle, test = row.bundle, row.prepared.load_split("test")
    classifier = find_or_train_extractor(row.prepared)
    assert isinstance(bundle.model, SignalVae) and isinstance(classifier, ClassifierExtractor)
    x, asked = row.prepared.layout.to_model(test.x), Asked(test.label, test.prompt)
    with torch.no_grad():
        condition = bundle.model.condition_of(asked)
        rebuilt = bundle.model.decode(bundle.model.encode(x.to(bundle.device), condition)[0], condition).cpu()

    def read(examples: Tensor) -> float:
        logits = classifier.logits_of(classifier.features(examples))
        return float((logits.argmax(1) == test.label).double().mean())

    share = read(heard(rebuilt, bundle.codec))
    print_row(
        "sound VAE",
        "FSDD",
        f">= {target} of the reconstructions of test clips are read",
        share >= target,
        row,
        read=share,
        read_of_clips=read(x),
        read_after_griffin_lim=read(heard(x, bundle.codec)),
        read_before_griffin_lim=read(rebuilt),
        clips=len(test),
    )


if __name__ == "__main__":
    main()
