"""Sound RNN on FSDD, mu-law of 8 bits: fewer bits a sample than `xz -9e` on the same bytes.

    python -m tests.benchmarks.row_audio_rnn --data ../shared/data

Both get the corpus's own test recordings, cut to their real lengths (those over 8,192 samples to that): xz one file of
all of them behind each other, the model each from an empty state. The model also pays for the end of every recording,
which says how long it is; padding behind it is in neither count.
"""

from __future__ import annotations

import lzma

from pipeline.models.base import LOG_2
from tests.benchmarks.rows import options, print_row, train


def main() -> None:
    told = options(__doc__).parse_args()
    row = train(told, "fsdd_rnn", "audio/fsdd.tar.xz")
    bundle, test = row.bundle, row.prepared.load_split("test")
    assert bundle.layout.end_token is not None
    samples = test.x[test.x < bundle.layout.end_token].numpy().astype("uint8")
    packed = 8 * len(lzma.compress(samples.tobytes(), preset=9 | lzma.PRESET_EXTREME)) / len(samples)
    sums = row.test_sums()
    bits = float(sums["nats"]) / LOG_2 / len(samples)
    figures = {"bits_a_sample": bits, "xz_bits_a_sample": packed, "recordings": len(test.x), "samples": len(samples)}
    print_row("sound RNN", "FSDD, mu-law 8 bit", "< xz -9e in bits a sample", bits < packed, row, **figures)


if __name__ == "__main__":
    main()
