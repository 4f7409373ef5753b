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
from pipeline.evaluation.likelihood import evaluate_split
from pipeline.models.base import LOG_2
from tests.benchmarks.kneser_ney import KneserNey
from tests.benchmarks.rows import options, print_row, train


def poems(arrays: SplitArrays, layout: Layout) -> list[np.ndarray]:
    """The tokens of each poem of a split that is one stream, without their ends."""
    stream = np.concatenate([arrays.x.numpy().reshape(-1), arrays.tail.numpy().reshape(-1)]).astype(np.int64)
    ends = np.flatnonzero(stream == layout.end_token)
    assert len(ends) and ends[-1] == len(stream) - 1
    return [part[:-1] for part in np.split(stream, ends + 1)[:-1]]


def main() -> None:
    told = options(__doc__).parse_args()
    path = told.data / "text" / "tang_poems.jsonl.xz"
    row = train("tang_rnn", told.storage, [f"data.source.path={path}", f"seed={told.seed}", *told.overrides])
    bundle, test = row.bundle, row.prepared.load_split("test")
    layout = bundle.layout
    assert layout.end_token is not None
    sums = evaluate_split(bundle.model, test, layout, row.spec, row.spec.seed)
    bits = float(sums["nats"] / sums["tokens"]) / LOG_2
    baseline = KneserNey(poems(row.prepared.load_split("train"), layout), layout.vocabulary, layout.end_token)
    packed = float(baseline.nats(poems(test, layout)).mean()) / LOG_2
    figures = {"bits_a_character": bits, "kneser_ney_bits": packed, "vocabulary": layout.vocabulary}
    print_row("text RNN", "Tang poems", "< Kneser-Ney 5-gram in bits a character", bits < packed, row, **figures)


if __name__ == "__main__":
    main()
