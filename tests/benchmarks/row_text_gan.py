"""Text GAN on COCO captions, characters: nearer to held-out text than a 2-gram Markov sampler.

    python -m tests.benchmarks.row_text_gan --data ../shared/data

Measured by the Jensen-Shannon divergence of 4-grams (`markov.divergence`, in bits) from the 10,000 test captions, cut
to what the model sees of one. The GAN and each sampler draw 10,000 texts, of which as many characters are compared; the
samplers' figures are means over five seeds. Training captions, taken the same way, say how near it can be.
"""

from __future__ import annotations

import numpy as np

from pipeline.generation.sampling import draw
from tests.benchmarks.markov import MarkovSampler, cut_to, divergence
from tests.benchmarks.rows import options, print_row, train

SAMPLES = 10_000
SEEDS = 5
ORDERS = 2, 3
"""Of the sampler to be better than, on two cores and on a GPU."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--conf", default="coco_gan")
    parser.add_argument("--show", type=int, default=0, help="how many of the texts to print above the row")
    told = parser.parse_args()
    folder = told.data / "text" / "coco_captions"
    row = train(told, told.conf, "text/coco_captions")
    longest = row.prepared.layout.length - 2  # begin and end are tokens
    known, held_out = (
        [line[:longest] for line in (folder / name).read_text().splitlines()] for name in ("train.txt", "test.txt")
    )
    texts = draw(row.bundle, SAMPLES, seed=told.seed, batch_size=500)
    for text in texts[: told.show]:
        print(text)
    drawn = {
        order: [
            [sampler.draw(generator, longest) for _ in range(SAMPLES)]
            for generator in map(np.random.default_rng, range(SEEDS))
        ]
        for order, sampler in ((order, MarkovSampler(known, order)) for order in ORDERS)
    }
    characters = min(sum(map(len, some)) for some in [texts, known, *drawn[2], *drawn[3]])
    samplers = {
        order: [divergence(cut_to(some, characters), held_out) for some in lists] for order, lists in drawn.items()
    }
    reached = divergence(cut_to(texts, characters), held_out)
    order = ORDERS[told.gpu]
    beside = float(np.mean(samplers[order]))
    print_row(
        "text GAN",
        "COCO captions",
        f"4-gram divergence < a {order}-gram sampler's",
        reached < beside,
        row,
        divergence_bits=reached,
        sampler_2_gram=float(np.mean(samplers[2])),
        sampler_2_gram_deviation=float(np.std(samplers[2])),
        sampler_3_gram=float(np.mean(samplers[3])),
        training_text=divergence(cut_to(known, characters), held_out),
        characters=characters,
        different_texts=len(set(texts)),
    )


if __name__ == "__main__":
    main()
