"""All scores of samples together: the same whatever the number of workers, no row lost, failures seen."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pipeline.evaluation import drawing
from pipeline.evaluation.drawing import chunks, training_chunks, training_rows
from pipeline.evaluation.evaluate import load_subject
from pipeline.evaluation.fidelity import FrechetDistance
from pipeline.evaluation.metric import DEFINITIONS, Subject, add
from pipeline.evaluation.sample_scores import SampleScores, collected
from tests.evaluation.conftest import MLP, PICTURES, SOUNDS, pictures, tones

VAE = {"kind": "vae", "latent_size": 4}


@pytest.fixture
def subject_of(spec_of, prepare_small, bundle_of, short_extractors):
    """A subject with `held_out` test rows and 130 training rows."""

    def make(held_out: int, make_rows=pictures, codec=PICTURES, **evaluation) -> Subject:
        spec = spec_of(codec, VAE, MLP, **evaluation)
        prepared = prepare_small(spec, {"train": make_rows(130), "test": make_rows(held_out, seed=1)})
        return load_subject(spec, prepared, bundle_of(spec, prepared), torch.device("cpu"))

    return make


@pytest.mark.parametrize(("make_rows", "codec"), [(pictures, PICTURES), (tones, SOUNDS)])
def test_one_two_and_four_workers_give_the_same_scores(subject_of, make_rows, codec):
    subject = subject_of(101, make_rows, codec, samples=60)
    metric = SampleScores()
    whole = metric.finish(metric.measure(subject), subject)
    assert whole.keys() >= {"kid", "precision", "vendi_score", "inception_score_ceiling", "frechet"}
    for world_size in (2, 4):
        total = {}
        for rank in range(world_size):
            # The cores that a worker has are other ones with another number of workers.
            torch.set_num_threads(2 - rank % 2)
            add(total, metric.measure(subject, rank, world_size))
        torch.set_num_threads(1)
        scores = metric.finish(total, subject)
        assert scores.keys() == whole.keys()
        for name, score in scores.items():
            assert score.value == pytest.approx(whole[name].value, rel=1e-9, abs=1e-9)
            assert score.interval == pytest.approx(whole[name].interval, rel=1e-9, abs=1e-9)
            assert score.protocol == whole[name].protocol


@pytest.mark.parametrize(("held_out", "samples", "sizes"), [(101, 60, (51, 50, 50)), (101, 30, (30, 30, 30))])
def test_no_row_is_dropped_or_taken_twice(subject_of, held_out, samples, sizes):
    subject = subject_of(held_out, samples=samples)
    taken = Counter((chunk.which, row) for chunk in chunks(subject) for row in range(chunk.start, chunk.stop))
    assert set(taken.values()) == {1}
    assert Counter(which for which, _ in taken) == dict(zip(("real_a", "real_b", "generated"), sizes, strict=True))
    found = collected(SampleScores().measure(subject), subject)
    assert len(found.held_out) == sizes[0] + sizes[1] and len(found.generated) == sizes[2]
    own = subject.extractor.features(subject.layout.to_model(subject.arrays.x))
    order = torch.randperm(held_out, generator=drawing.make_generator(0, "evaluation-real"))
    torch.testing.assert_close(found.held_out, own[order[: len(found.held_out)]], rtol=1e-5, atol=1e-5)
    assert found.held_out_logits.shape == (sizes[0] + sizes[1], 2)


@pytest.mark.parametrize(("most", "step"), [(50_000, 1), (65, 2)])
def test_training_examples_are_all_or_evenly_spaced_and_in_order(subject_of, monkeypatch, most, step):
    monkeypatch.setattr(drawing, "MOST_IN_CHUNK", 17)
    subject = subject_of(60, training_samples=most)
    rows = training_rows(subject)
    assert rows.tolist() == list(range(0, 130, step))
    assert sum(chunk.stop - chunk.start for chunk in training_chunks(subject)) == len(rows)
    found = collected(SampleScores().measure(subject), subject)
    arrays = subject.prepared.load_split("train")
    expected = subject.extractor.features(subject.layout.to_model(arrays.x[rows]))
    torch.testing.assert_close(found.train, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.train_rows, rows)


def test_the_distance_is_that_of_the_metric_that_gives_it_alone(subject_of):
    subject = subject_of(101)
    together, alone = SampleScores(), FrechetDistance()
    scores = together.finish(together.measure(subject), subject)
    for name, score in alone.finish(alone.measure(subject), subject).items():
        assert scores[name] == score


def test_real_examples_score_as_real_and_bad_ones_do_not(subject_of):
    """The floor: fresh examples of the distribution are within what one real half scores against the other."""
    subject = subject_of(400, samples=200)
    metric = SampleScores()
    fresh = subject.layout.to_model(torch.stack([torch.from_numpy(raw) for raw, _ in pictures(200, seed=9)]))
    fresh = fresh.permute(0, 3, 1, 2)

    def scores_of(examples: torch.Tensor) -> dict[str, float]:
        taken = iter(examples.split(1))
        subject.model.sample = lambda count, generator, options: torch.cat([next(taken) for _ in range(count)])
        return {name: score.value for name, score in metric.finish(metric.measure(subject), subject).items()}

    real = scores_of(fresh)
    assert real["frechet"] < 3 * real["frechet_floor"]
    for name in ("precision", "recall", "coverage"):
        assert abs(real[name] - real[f"{name}_ceiling"]) < 0.1
    assert real["vendi_score"] == pytest.approx(real["vendi_score_ceiling"], rel=0.1)
    assert real["inception_score"] == pytest.approx(real["inception_score_ceiling"], rel=0.1)
    collapsed = scores_of(fresh[:10].repeat(20, 1, 1, 1))
    assert collapsed["coverage"] < 0.5 < real["coverage"] and collapsed["recall"] < 0.2 < real["recall"]
    noise = scores_of(torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert noise["precision"] < 0.2 < real["precision"] and noise["kid"] > 10 * abs(real["kid_floor"])


def test_few_examples_are_refused_with_the_reason_and_some_carry_a_caution(subject_of):
    metric = SampleScores()
    few = subject_of(16)
    assert metric.num_pieces(few) == 0 and metric.finish(metric.measure(few), few) == {}
    assert {"frechet", "kid", "precision", "inception_score"} <= metric.refusals(few).keys()
    some = subject_of(30)
    scores = metric.finish(metric.measure(some), some)
    assert scores.keys() == {"frechet", "frechet_floor"}
    assert "15 examples in the smallest set" in metric.refusals(some)["kid"]
    assert "15 examples" in scores["frechet"].caution
    assert all(DEFINITIONS[name].fewest for name in metric.refusals(few))
