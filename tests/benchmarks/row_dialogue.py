"""Dialogue on 1,220 task dialogues: below an interpolated Kneser-Ney 5-gram of the same subwords and roles.

    python -m tests.benchmarks.row_dialogue --data ../shared/data

Both are scored on the same held-out dialogues, their roles and ends included; nats a token, which compare since the
tokens are the same.
"""

from __future__ import annotations

from tests.benchmarks.kneser_ney import KneserNey
from tests.benchmarks.row_tang_rnn import poems
from tests.benchmarks.rows import options, print_row, train


def main() -> None:
    told = options(__doc__).parse_args()
    row = train(told, "../dialogue", "text/dialogues.jsonl.xz")
    layout, scores = row.prepared.layout, row.scores()
    assert layout.end_token is not None
    nats = scores["test/nats_per_token"].value
    baseline = KneserNey(poems(row.prepared.load_split("train"), layout), layout.vocabulary, layout.end_token)
    counted = float(baseline.nats(poems(row.prepared.load_split("test"), layout)).mean())
    bits = scores["test/bits_per_char"].value
    figures = {"nats_a_token": nats, "kneser_ney_nats": counted, "bits_a_character": bits}
    print_row("dialogue RNN", "schema-guided dialogues", "< Kneser-Ney 5-gram", nats < counted, row, **figures)


if __name__ == "__main__":
    main()
