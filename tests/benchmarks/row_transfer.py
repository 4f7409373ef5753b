"""Transfer: a small corpus learned from another corpus's model and from nothing, at the same budgets; a line a pair.

    python -m tests.benchmarks.row_transfer --data ../shared/data

tinyshakespeare and COCO captions to 100 dialogues (characters; the roles are tokens that the donor never had), and
Fashion-MNIST to 500 digits of MNIST. Both trainings of a pair differ in `training.init_from` alone, with three seeds
each; what is compared is the score of held-out examples at the end of each budget.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.prepared import Prepared
from pipeline.evaluation.evaluate import measure
from pipeline.evaluation.forgetting import forgetting
from pipeline.generation.sampling import save_bundle
from pipeline.inheriting import donor_of
from pipeline.models.surgery import Inheritance, inherit
from pipeline.progress import silent
from pipeline.spec import RunSpec, load_spec
from pipeline.storage import open_store
from pipeline.training.in_process import train_in_process
from pipeline.training.initial import keep_weights
from tests.benchmarks.rows import TrainedRow, options, prepared_for, print_row, train

BUDGETS = (100, 300, 1000)
SEEDS = 3
DIALOGUES, HELD_OUT_DIALOGUES, DIGITS = 100, 200, 500


@dataclass(frozen=True)
class Pair:
    """A donor's conf and an heir's, how their corpora are made below a folder, and the score that compares."""

    cell: str
    corpora: str
    donor: str
    heir: str
    make: Callable[[Path, Path], tuple[Path, Path]]
    score: str
    unit: str


def texts(data: Path, folder: Path) -> tuple[Path, Path]:
    """The folder of the donor's two texts, and the dialogues, each with its side of the split."""
    prose, dialogues = folder / "prose", folder / "dialogues.jsonl"
    prose.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(data / "text" / "tinyshakespeare.txt", prose / "tinyshakespeare.txt")
    shutil.copyfile(data / "text" / "coco_captions" / "train.txt", prose / "captions.txt")
    with lzma.open(data / "text" / "dialogues.jsonl.xz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    # Spread over the file, whose dialogues of one kind stand together.
    order = np.random.default_rng(0).permutation(len(records))[: DIALOGUES + HELD_OUT_DIALOGUES]
    sides = ["train"] * DIALOGUES + ["test"] * HELD_OUT_DIALOGUES
    told = [{**records[place], "split": side} for place, side in zip(order.tolist(), sides, strict=True)]
    dialogues.write_text("".join(json.dumps(one) + "\n" for one in told), encoding="utf-8")
    return prose, dialogues


def pictures(data: Path, folder: Path) -> tuple[Path, Path]:
    """Fashion-MNIST, and an archive of the first digits of MNIST with all of its test digits."""
    digits = folder / "digits.npz"
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(data / "image" / "mnist.npz") as arrays:
        kept = {name: arrays[name][:DIGITS] if name.endswith("train") else arrays[name] for name in arrays.files}
    np.savez(digits, **kept)
    return data / "image" / "fashion_mnist.npz", digits


PAIRS = (
    Pair(
        "transfer, text RNN",
        "tinyshakespeare + captions -> 100 dialogues",
        "transfer_prose",
        "transfer_dialogues",
        texts,
        "nats_per_token",
        "nats a character",
    ),
    Pair(
        "transfer, picture VAE",
        "Fashion-MNIST -> 500 MNIST digits",
        "transfer_garments",
        "transfer_digits",
        pictures,
        "nll_nats",
        "nats",
    ),
)


def score_of(spec: RunSpec, prepared: Prepared, initial: str | None, score: str) -> tuple[float, TrainedRow]:
    """The held-out score of a training, which begins with the weights kept under the name `initial`, if any."""
    store = open_store(spec.storage)
    key = f"{spec.name}-{time.time_ns()}"
    trained = train_in_process(spec, prepared, store, key, None, None, silent, initial_weights=initial)
    folder = Path(store.local_path("rows", key))
    save_bundle(folder, spec, prepared.manifest.as_dict(), trained.weights)
    row = TrainedRow(spec, prepared, folder, trained.step, trained.seconds)
    return measure(spec, prepared, folder, [score])[score].score.value, row


def compare(pair: Pair, told: argparse.Namespace) -> None:
    """Train the donor, then the heir with and without it at every budget; print the pair's line."""
    storage = told.storage
    made = [path.resolve() for path in pair.make(told.data, storage / "transfer")]
    donor_row = train(told, pair.donor, str(made[0]))
    donor = donor_of(donor_row.folder)
    path = f"data.source.path={made[1]}"
    _, prepared = prepared_for(pair.heir, storage, [path])
    figures: dict[str, list[float]] = {}
    met, taken, last = True, None, None
    for budget in BUDGETS:
        for seed in range(SEEDS):
            keys = [f"storage={storage}", path, f"seed={seed}", f"training.steps={budget}"]
            spec = load_spec(f"conf/benchmarks/{pair.heir}.yaml", keys)
            scratch, _ = score_of(spec, prepared, None, pair.score)
            heir = load_spec(f"conf/benchmarks/{pair.heir}.yaml", [*keys, f"training.init_from={donor_row.folder}"])
            weights, taken = inherit(heir, prepared.layout, prepared.codec.meanings(), donor)
            initial = keep_weights(open_store(heir.storage), weights)
            transferred, last = score_of(heir, prepared, initial, pair.score)
            figures.setdefault(f"scratch_{budget}", []).append(round(scratch, 4))
            figures.setdefault(f"transferred_{budget}", []).append(round(transferred, 4))
            met &= transferred < scratch
    assert isinstance(taken, Inheritance) and last is not None
    lost = forgetting(last.spec, donor_row.prepared, donor_row.folder, last.folder)
    print_row(
        pair.cell,
        pair.corpora,
        f"fewer {pair.unit} than from nothing at {BUDGETS} steps, {SEEDS} seeds each",
        met,
        last,
        donor_seconds=round(donor_row.seconds),
        taken_over=taken.in_words(),
        **{key.rpartition("/")[2]: score.value for key, score in lost.items()},
        **figures,
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--pair", choices=["text", "picture"], help="one of the two pairs alone")
    told = parser.parse_args()
    for pair in PAIRS:
        if told.pair is None or told.pair in pair.cell:
            compare(pair, told)


if __name__ == "__main__":
    main()
