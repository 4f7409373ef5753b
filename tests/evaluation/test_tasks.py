"""The evaluation as Ray tasks: the scores of this process, whatever the number of workers."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import PreparedDataError
from pipeline.evaluation.evaluate import collect_samples, evaluate
from tests.evaluation.conftest import MLP, PICTURES, RECURRENT, WINDOWS, pictures

pytestmark = pytest.mark.ray

VAE = {"kind": "vae", "latent_size": 4, "binarise": "dynamic"}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("cell", ["pictures", "text"])
def test_two_and_four_workers_give_the_scores_of_one(spec_of, prepare_small, bundle_of, cell):
    if cell == "pictures":
        parts, rows = (PICTURES, VAE, MLP), pictures(61)
    else:
        parts, rows = (WINDOWS, {"kind": "rnn"}, RECURRENT), [("to be or not to be, " * 600, None)]
    one = spec_of(*parts, samples=1000)
    prepared = prepare_small(one, {"train": rows, "test": rows})
    bundle = bundle_of(one, prepared)
    told: list[tuple[str, int, int | None]] = []
    alone = evaluate(one, prepared, bundle, lambda stage, done, total, _: told.append((stage, done, total)))
    assert told[-1][0] == "evaluate"
    assert told[-1][1] == told[-1][2]
    if cell == "pictures":
        assert alone.keys() >= {"test/nll_nats", "test/frechet", "test/kid", "test/precision", "test/vendi_score"}
        samples = collect_samples(one, prepared, bundle)
        assert (len(samples.generated), len(samples.held_out), len(samples.train)) == (30, 61, 61)
    for workers in (2, 4):
        spec = spec_of(*parts, samples=1000, num_workers=workers)
        together = evaluate(spec, prepared, bundle)
        assert alone.keys() == together.keys()
        for key, score in alone.items():
            assert together[key].value == pytest.approx(score.value, abs=1e-9, rel=1e-9)
            bounds = None if score.interval is None else pytest.approx(score.interval, abs=1e-9, rel=1e-9)
            assert together[key].interval == bounds
            assert together[key].protocol == score.protocol
        if cell == "pictures":
            again = collect_samples(spec, prepared, bundle)
            for name in ("generated", "held_out", "train", "generated_logits", "held_out_logits"):
                torch.testing.assert_close(getattr(again, name), getattr(samples, name), rtol=1e-9, atol=1e-9)
    assert "test/frechet" in alone or "test/self_bleu_4" in alone


@pytest.mark.usefixtures("ray_cluster")
def test_a_workers_error_arrives_as_it_was(spec_of, prepare_small, bundle_of):
    spec = spec_of(PICTURES, VAE, MLP)
    prepared = prepare_small(spec, {"train": pictures(30), "test": pictures(30)})
    bundle = bundle_of(spec, prepared)
    prepared.store.filesystem.delete_file(prepared.store.path("test-00000.parquet"))
    with pytest.raises(PreparedDataError, match=r"test-00000\.parquet"):
        evaluate(spec, prepared, bundle)
