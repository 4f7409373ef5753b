"""Text RNN on tinyshakespeare, the field's split: at most 1.48 nats a character on the whole last tenth.

    python -m tests.benchmarks.row_text_rnn --data ../shared/data

Anchors: nanoGPT's setting for a CPU 1.88, its setting for a GPU 1.4697 (its README).
"""

from __future__ import annotations

from tests.benchmarks.rows import options, print_row, train

TARGETS = 1.48, 1.44
"""On two cores, on a GPU."""


def main() -> None:
    told = options(__doc__).parse_args()
    row, target = train(told, "tinyshakespeare_rnn", "text/tinyshakespeare.txt"), TARGETS[told.gpu]
    nats = row.scores()["test/nats_per_token"].value
    print_row("text RNN", "tinyshakespeare", f"<= {target} nats a character", nats <= target, row, nats=nats)


if __name__ == "__main__":
    main()
