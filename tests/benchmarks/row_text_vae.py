"""Text VAE on COCO captions, words: as good a model of the words as an RNN of its size, with a code that is in use.

    python -m tests.benchmarks.row_text_vae --data ../shared/data

Both are trained by one conf, for as long, and scored on the same held-out captions: the RNN exactly, the VAE by the
importance-weighted bound. Between the two lines of JSON stand sentences decoded on the way from one code to another.
"""

from __future__ import annotations

from pipeline.evaluation.latent import look_into
from tests.benchmarks.rows import options, print_row, train

WITHIN = 1.02, 1.0
"""Times the RNN's nats, on two cores and on a GPU."""
LEAST_KL_NATS = 4.0
LEAST_ACTIVE = 8


def main() -> None:
    told = options(__doc__).parse_args()
    rnn = train(told, "coco_vae", "text/coco_captions", "name=coco-rnn", "model.family={kind: rnn}")
    sums = rnn.test_sums()
    rnn_nats = float(sums["nats"] / sums["examples"])
    print_row("text RNN", "COCO captions, words", "the text VAE's measure", True, rnn, nats=rnn_nats)

    row = train(told, "coco_vae", "text/coco_captions")
    bundle = row.bundle
    scores = bundle.model.summarise(row.test_sums())
    view = look_into(bundle.model, bundle.codec, row.prepared.layout, row.prepared.load_split("test"), told.seed)
    for walk in view.interpolations if view is not None else []:
        assert walk.ends is not None
        print("\n".join([f"< {walk.ends[0]}", *(f"    {frame}" for frame in walk.frames), f"> {walk.ends[1]}"]))
    within = WITHIN[told.gpu]
    share, kl, active = scores["nll_nats"] / rnn_nats, scores["kl_nats"], scores["active_units"]
    print_row(
        "text VAE",
        "COCO captions, words",
        f"<= {within} x the RNN's nats, KL >= {LEAST_KL_NATS}, >= {LEAST_ACTIVE} active units",
        share <= within and kl >= LEAST_KL_NATS and active >= LEAST_ACTIVE,
        row,
        nats=scores["nll_nats"],
        share_of_rnn=share,
        kl_nats=kl,
        active_units=active,
        draws=row.spec.evaluation.nll_samples,
        examples=row.spec.evaluation.max_examples,
    )


if __name__ == "__main__":
    main()
