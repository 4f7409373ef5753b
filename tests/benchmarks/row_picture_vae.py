"""Picture VAE on MNIST, dynamic binarisation, all 10,000 test digits: at most 84.5 nats (L = 1,000).

    python -m tests.benchmarks.row_picture_vae --data ../shared/data

Anchors (Burda et al. 2016, table 1, one stochastic layer): VAE 86.76, IWAE with k = 50 84.78.
"""

from __future__ import annotations

from pipeline.evaluation.likelihood import evaluate_split
from tests.benchmarks.rows import options, print_row, train

TARGET = 84.5


def main() -> None:
    told = options(__doc__).parse_args()
    path = told.data / "image" / "mnist.npz"
    row = train("mnist_vae", told.storage, [f"data.source.path={path}", f"seed={told.seed}", *told.overrides])
    spec, prepared, model = row.spec, row.prepared, row.bundle.model
    sums = evaluate_split(model, prepared.load_split("test"), prepared.layout, spec, spec.seed)
    scores = model.summarise(sums)
    print_row(
        "picture VAE",
        "MNIST, dynamic binarisation",
        f"<= {TARGET} nats",
        scores["nll_nats"] <= TARGET,
        row,
        nats=scores["nll_nats"],
        kl_nats=scores["kl_nats"],
        active_units=scores["active_units"],
        draws=model.importance_samples,
        examples=int(sums["examples"]),
    )


if __name__ == "__main__":
    main()
