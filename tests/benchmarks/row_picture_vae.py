"""Picture VAE on MNIST, dynamic binarisation, all 10,000 test digits: at most 84.5 nats (L = 1,000).

    python -m tests.benchmarks.row_picture_vae --data ../shared/data

Anchors (Burda et al. 2016, table 1, one stochastic layer): VAE 86.76, IWAE with k = 50 84.78.
"""

from __future__ import annotations

from tests.benchmarks.rows import options, print_row, train

TARGETS = 84.5, 81.0
"""On two cores, on a GPU."""


def main() -> None:
    told = options(__doc__).parse_args()
    row, target = train(told, "mnist_vae", "image/mnist.npz"), TARGETS[told.gpu]
    model, sums = row.bundle.model, row.test_sums()
    scores = model.summarise(sums)
    print_row(
        "picture VAE",
        "MNIST, dynamic binarisation",
        f"<= {target} nats",
        scores["nll_nats"] <= target,
        row,
        nats=scores["nll_nats"],
        kl_nats=scores["kl_nats"],
        active_units=scores["active_units"],
        draws=model.importance_samples,
        examples=int(sums["examples"]),
    )


if __name__ == "__main__":
    main()
