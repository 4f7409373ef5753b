"""Sound GAN on spoken digits (FSDD): inception score at least 3 under a classifier trained on real clips.

    python -m tests.benchmarks.row_sound_gan --data ../shared/data [--sounds FOLDER]

The classifier is the corpus's own, trained on the log-mel signals of the training clips. It is shown what a listener
hears: each of 1,000 generated signals is made a waveform by Griffin-Lim and analysed again. Digits are asked for as
often as the training clips have them; the test clips, taken the same way, say what is to be expected.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.codec import Codec
from pipeline.evaluation.diversity import inception_score
from pipeline.evaluation.features import ClassifierExtractor, find_or_train_extractor
from pipeline.generation.sampling import draw, overview
from tests.benchmarks.rows import options, print_row, train

TARGETS = 3.0, 6.5
"""On two cores, on a GPU."""
SAMPLES = 1000


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--conf", default="fsdd_specgan")
    parser.add_argument("--sounds", type=Path, help="a folder for the first sounds, and a sheet of their spectrograms")
    told = parser.parse_args()
    row, target = train(told, told.conf, "audio/fsdd.tar.xz"), TARGETS[told.gpu]
    bundle = row.bundle
    sounds = draw(bundle, SAMPLES, seed=told.seed)
    if told.sounds:
        _save(bundle.codec, sounds, told.sounds)
    classifier = find_or_train_extractor(row.prepared)
    assert isinstance(classifier, ClassifierExtractor)
    held_out = row.prepared.load_split("test")
    real = [bundle.codec.decode(x.numpy()) for x in row.prepared.layout.to_model(held_out.x)]
    score, interval = inception_score(_heard(classifier, bundle.codec, sounds))
    ceiling, _ = inception_score(_heard(classifier, bundle.codec, real))
    print_row(
        "sound GAN",
        "FSDD",
        f"inception score >= {target}",
        score >= target,
        row,
        inception_score=score,
        interval=[round(end, 3) for end in interval or ()],
        of_test_clips=ceiling,
        classifier_accuracy=classifier.accuracy,
        samples=SAMPLES,
    )


def _heard(classifier: ClassifierExtractor, codec: Codec, sounds: Iterable[np.ndarray]) -> Tensor:
    """Class logits `[N, K]` of waveforms."""
    signals = torch.from_numpy(np.stack([codec.encode(sound) for sound in sounds])).float()
    return torch.cat([classifier.logits_of(classifier.features(part)) for part in signals.split(100)])


def _save(codec: Codec, sounds: list[np.ndarray], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, sound in enumerate(sounds[:16]):
        (folder / f"{number:02}{codec.extension}").write_bytes(codec.to_bytes(sound))
    sheet = overview(sounds[:8], "audio", codec.layout().sample_rate_hz)
    assert sheet is not None
    (folder / "sounds.png").write_bytes(sheet)


if __name__ == "__main__":
    main()
