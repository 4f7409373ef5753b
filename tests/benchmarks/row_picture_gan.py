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
    gan = train(told, "fashion_gan", *common)
    scores = gan.scores()
    distance, floor = scores["test/frechet"].value, scores["test/frechet_floor"].value
    figures = {"frechet": distance, "frechet_floor": floor}
    if told.pictures:
        _save_sheet(gan, told.pictures)
    if told.gpu:
        met = distance <= FLOORS * floor
        print_row("picture GAN", "Fashion-MNIST", f"Fréchet distance <= {FLOORS} x the floor", met, gan, **figures)
        return
    vae = train(told, "fashion_vae", *common)
    others = vae.scores()["test/frechet"].value
    if told.pictures:
        _save_sheet(vae, told.pictures)
    figures |= {"frechet_vae": others, "share": distance / others, "vae_training_seconds": round(vae.seconds)}
    met = distance <= SHARE * others
    print_row("picture GAN", "Fashion-MNIST", f"Fréchet distance <= {SHARE} x the VAE's", met, gan, **figures)


def _save_sheet(row: TrainedRow, folder: Path) -> None:
    sheet = overview(draw(row.bundle, 64, seed=0), row.prepared.layout.modality)
    assert sheet is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{row.spec.name}.png").write_bytes(sheet)


if __name__ == "__main__":
    main()
