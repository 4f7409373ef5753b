"""Picture GAN on Fashion-MNIST: its Fréchet distance at most half the picture VAE's of the same training time.

    python -m tests.benchmarks.row_picture_gan --data ../shared/data [--seconds 590] [--pictures FOLDER]

Both are trained here, one after the other, each for `--seconds`. The features are those of the corpus's own classifier,
the same for both; 5,000 generated pictures stand against two halves of the 10,000 test pictures.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.generation.sampling import draw, overview
from tests.benchmarks.rows import TrainedRow, options, print_row, train

SHARE = 0.5
"""Of the VAE's distance, on two cores."""
FLOORS = 3.0
"""Distances between two real halves, on a GPU."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=590, help="of training, for each of the two")
    parser.add_argument("--pictures", type=Path, help="a folder for a sheet of what each draws")
    told = parser.parse_args()
    common = "image/fashion_mnist.npz", f"training.max_seconds={told.seconds}"
    gan, vae = train(told, "fashion_gan", *common), train(told, "fashion_vae", *common)
    if told.pictures:
        for row in (gan, vae):
            _save_sheet(row, told.pictures)
    scores, beside = gan.scores(), vae.scores()
    distance, others = scores["test/frechet"].value, beside["test/frechet"].value
    floor = scores["test/frechet_floor"].value
    target = f"<= {FLOORS} x the floor" if told.gpu else f"<= {SHARE} x the VAE's"
    print_row(
        "picture GAN",
        "Fashion-MNIST",
        f"Fréchet distance {target}",
        distance <= (FLOORS * floor if told.gpu else SHARE * others),
        gan,
        frechet=distance,
        frechet_vae=others,
        share=distance / others,
        frechet_floor=floor,
        vae_training_seconds=round(vae.seconds),
    )


def _save_sheet(row: TrainedRow, folder: Path) -> None:
    sheet = overview(draw(row.bundle, 64, seed=0), row.prepared.layout.modality)
    assert sheet is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{row.spec.name}.png").write_bytes(sheet)


if __name__ == "__main__":
    main()
