"""Text RNN on Tang poems: fewer bits a character than an interpolated Kneser-Ney 5-gram.

    python -m tests.benchmarks.row_tang_rnn --data ../shared/data

Both models have the codec's symbols, predict every one of them in the test poems and the end of every poem, and are
charged one symbol for a character that training did not see twice; bits are shared out over those symbols and ends. The
5-gram starts every poem from nothing but its beginning, the RNN after the poem before.
"""

from __future__ import annotations

import numpy as np

from pipeline.data.layout import Layout
from pipeline.data.prepared import SplitArrays
from pipeline.models.base import LOG_2
from tests.benchmarks.kneser_ney import KneserNey
from tests.benchmarks.rows import options, print_row, train

SHARES = 1.0, 0.9
"""Of the 5-gram's bits, on two cores and on a GPU."""


def poems(arrays: SplitArrays, layout: Layout) -> list[np.ndarray]:
    """The tokens of each poem of a split that is one stream, without their ends."""
    stream = np.concatenate([arrays.x.numpy().reshape(-1), arrays.tail.numpy().reshape(-1)]).astype(np.int64)
    ends = np.flatnonzero(stream == layout.end_token)
    assert len(ends) and ends[-1] == len(stream) - 1
    return [part[:-1] for part in np.split(stream, ends + 1)[:-1]]


def main() -> None:
    told = options(__doc__).parse_args()
    row = train(told, "tang_rnn", "text/tang_poems.jsonl.xz")
    bundle, test = row.bundle, row.prepared.load_split("test")
    layout = bundle.layout
    assert layout.end_token is not None
    sums = row.test_sums()
    bits = float(sums["nats"] / sums["tokens"]) / LOG_2
    baseline = KneserNey(poems(row.prepared.load_split("train"), layout), layout.vocabulary, layout.end_token)
    packed = float(baseline.nats(poems(test, layout)).mean()) / LOG_2
    share = SHARES[told.gpu]
    figures = {"bits_a_character": bits, "kneser_ney_bits": packed, "vocabulary": layout.vocabulary}
    print_row(
        "text RNN",
        "Tang poems",
        f"< {share} x a Kneser-Ney 5-gram's bits a character",
        bits < share * packed,
        row,
        **figures,
    )


if __name__ == "__main__":
    main()
