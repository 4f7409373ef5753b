"""The evaluation as Ray tasks: the scores of this process, whatever the number of workers."""

from __future__ import annotations

import pytest

from pipeline.errors import PreparedDataError
from pipeline.evaluation.evaluate import evaluate
from tests.evaluation.conftest import MLP, PICTURES, RECURRENT, WINDOWS, pictures

pytestmark = pytest.mark.ray

VAE = {"kind": "vae", "latent_size": 4, "binarise": "dynamic"}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("cell", ["pictures", "text"])
def test_two_workers_give_the_scores_of_one(spec_of, prepare_small, bundle_of, cell):
    if cell == "pictures":
        parts, rows = (PICTURES, VAE, MLP), pictures(60)
    else:
        parts, rows = (WINDOWS, {"kind": "rnn"}, RECURRENT), [("to be or not to be, " * 600, None)]
    one, two = (spec_of(*parts, samples=1000, num_workers=workers) for workers in (1, 2))
    prepared = prepare_small(one, {"train": rows, "test": rows})
    bundle = bundle_of(one, prepared)
    told: list[tuple[str, int, int | None]] = []
    alone = evaluate(one, prepared, bundle, lambda stage, done, total, _: told.append((stage, done, total)))
    together = evaluate(two, prepared, bundle)
    assert told[-1][0] == "evaluate"
    assert told[-1][1] == told[-1][2]
    assert alone.keys() == together.keys()
    assert "test/frechet" in alone or "test/self_bleu_4" in alone
    for key, score in alone.items():
        assert together[key].value == pytest.approx(score.value, abs=1e-9, rel=1e-9)
        assert together[key].protocol == score.protocol


@pytest.mark.usefixtures("ray_cluster")
def test_a_workers_error_arrives_as_it_was(spec_of, prepare_small, bundle_of):
    spec = spec_of(PICTURES, VAE, MLP)
    prepared = prepare_small(spec, {"train": pictures(30), "test": pictures(30)})
    bundle = bundle_of(spec, prepared)
    prepared.store.filesystem.delete_file(prepared.store.path("test-00000.parquet"))
    with pytest.raises(PreparedDataError, match=r"test-00000\.parquet"):
        evaluate(spec, prepared, bundle)
