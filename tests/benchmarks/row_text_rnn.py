"""Text RNN on tinyshakespeare, the field's split: at most 1.48 nats a character on the whole last tenth.

    python -m tests.benchmarks.row_text_rnn --data ../shared/data

Anchors: nanoGPT's setting for a CPU 1.88, its setting for a GPU 1.4697 (its README).
"""

from __future__ import annotations

from tests.benchmarks.rows import options, print_row, train

TARGET = 1.48


def main() -> None:
    told = options(__doc__).parse_args()
    path = told.data / "text" / "tinyshakespeare.txt"
    row = train("tinyshakespeare_rnn", told.storage, [f"data.source.path={path}", f"seed={told.seed}", *told.overrides])
    nats = row.scores()["test/nats_per_token"].value
    print_row("text RNN", "tinyshakespeare", f"<= {TARGET} nats a character", nats <= TARGET, row, nats=nats)


if __name__ == "__main__":
    main()
