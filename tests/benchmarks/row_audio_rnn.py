"""Sound RNN on FSDD, mu-law of 8 bits: fewer bits a sample than `xz -9e` on the same bytes.

    python -m tests.benchmarks.row_audio_rnn --data ../shared/data

Both get the corpus's own test recordings, cut to their real lengths (those over 8,192 samples to that): xz one file of
all of them behind each other, the model each from an empty state. The model also pays for the end of every recording,
which says how long it is; padding behind it is in neither count. Beside them stands an order-3 context model, an
interpolated Kneser-Ney 4-gram of the training recordings, which a GPU's model is to beat by a tenth.
"""

from __future__ import annotations

import lzma

import numpy as np

from pipeline.models.base import LOG_2
from tests.benchmarks.kneser_ney import KneserNey
from tests.benchmarks.rows import TrainedRow, options, print_row, train

SHARE = 0.9
"""Of the context model's bits, on a GPU."""


def recordings(row: TrainedRow, split: str) -> list[np.ndarray]:
    """The samples of each recording of a split, without its end and what is behind it."""
    end, x = row.prepared.layout.end_token, row.prepared.load_split(split).x.numpy()
    return [example[: np.argmax(example == end) if (example == end).any() else None] for example in x]


def main() -> None:
    told = options(__doc__).parse_args()
    row = train(told, "fsdd_rnn", "audio/fsdd.tar.xz")
    bundle, test = row.bundle, row.prepared.load_split("test")
    assert bundle.layout.end_token is not None
    samples = test.x[test.x < bundle.layout.end_token].numpy().astype("uint8")
    packed = 8 * len(lzma.compress(samples.tobytes(), preset=9 | lzma.PRESET_EXTREME)) / len(samples)
    sums = row.test_sums()
    bits = float(sums["nats"]) / LOG_2 / len(samples)
    counts = KneserNey(recordings(row, "train"), bundle.layout.end_token + 1, bundle.layout.end_token, order=4)
    counted = float(counts.nats(recordings(row, "test")).sum()) / LOG_2 / len(samples)
    figures = {
        "bits_a_sample": bits,
        "xz_bits_a_sample": packed,
        "order_3_bits_a_sample": counted,
        "recordings": len(test.x),
        "samples": len(samples),
    }
    target, most = ("0.9 x an order-3 context model", SHARE * counted) if told.gpu else ("xz -9e", packed)
    print_row("sound RNN", "FSDD, mu-law 8 bit", f"< {target} in bits a sample", bits < most, row, **figures)


if __name__ == "__main__":
    main()
