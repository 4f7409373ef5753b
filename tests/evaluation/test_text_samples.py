"""The texts that a model generates: collected in pieces, decoded in order, scored beside held-out text."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from pipeline.errors import TrainingFailedError
from pipeline.evaluation import evaluate as room
from pipeline.evaluation.evaluate import evaluate, load_subject
from pipeline.evaluation.evidence import evidence_of
from pipeline.evaluation.metric import Score, add
from pipeline.evaluation.text_samples import TOKENS, TextSamples, decoded_samples, held_out_texts, training_texts
from pipeline.evaluation.text_scores import DEFINITIONS_OF_TEXTS
from pipeline.evaluation.verdict import judge
from tests.evaluation.conftest import DOCUMENTS, MLP, RECURRENT, WINDOWS
from tests.evaluation.texts import sentences

RNN = {"kind": "rnn"}
VAE = {"kind": "vae", "latent_size": 4}
GAN = {"kind": "gan", "latent_size": 4}
SENTENCES = {**DOCUMENTS, "length": 80}
HELD_OUT_STREAM = " ".join(sentences(400, 1))
CELLS = [(WINDOWS, RNN, RECURRENT), (SENTENCES, RNN, RECURRENT), (SENTENCES, VAE, RECURRENT), (SENTENCES, GAN, MLP)]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Also where another test of the session has started Ray."""
    monkeypatch.setattr(room.ray, "is_initialized", lambda: False)


@pytest.fixture
def cell_of(spec_of, prepare_small, bundle_of):
    """Spec, prepared set and bundle of a cell over made sentences: a stream of them where the codec cuts windows."""

    def make(codec, family, backbone, **evaluation):
        spec = spec_of(codec, family, backbone, **{"samples": 1000, "temperatures": [0.5, 1.0], **evaluation})
        train, test = sentences(300, 0), sentences(160, 1)
        if codec is WINDOWS:
            train, test = [" ".join(train)], [HELD_OUT_STREAM]
        prepared = prepare_small(spec, {"train": [(t, None) for t in train], "test": [(t, None) for t in test]})
        return spec, prepared, bundle_of(spec, prepared)

    return make


@pytest.mark.parametrize(("codec", "family", "backbone"), CELLS)
def test_every_family_of_text_is_scored_with_curves_and_survives_json(cell_of, codec, family, backbone):
    spec, prepared, bundle = cell_of(codec, family, backbone)
    scores = evaluate(spec, prepared, bundle)
    assert {f"test/{key}" for key in DEFINITIONS_OF_TEXTS} <= set(scores)
    self_bleu = scores["test/self_bleu_4"]
    assert self_bleu.protocol["temperature"] == 1.0
    assert self_bleu.curve.x == (0.5, 1.0)
    assert self_bleu.curve.values[1] == self_bleu.value
    assert self_bleu.curve.intervals[1] == self_bleu.interval
    kept = json.loads(json.dumps({key: score.as_dict() for key, score in scores.items()}))
    assert Score.from_dict(kept["test/self_bleu_4"]) == self_bleu
    # A network that has learned nothing writes noise, and no more than that is said of it.
    evidence = evidence_of(scores, "test/")
    assert len(evidence) == len(DEFINITIONS_OF_TEXTS) // 2 + 1  # and the length of the n-grams
    assert "copies" not in judge(evidence).findings


def test_pieces_do_not_depend_on_the_number_of_workers(cell_of):
    subject = load_subject(*cell_of(*CELLS[0]), torch.device("cpu"))
    metric = TextSamples()
    alone = metric.measure(subject)
    assert len(alone) == metric.num_pieces(subject) == 2 * -(-metric.num_texts(subject) // 7)
    for world_size in (2, 3):
        together: dict[str, torch.Tensor] = {}
        for rank in range(world_size):
            add(together, metric.measure(subject, rank, world_size))
        assert together.keys() == alone.keys()
        assert all(torch.equal(together[name], alone[name]) for name in alone)
        assert decoded_samples(together, subject.codec) == decoded_samples(alone, subject.codec)


def test_held_out_texts_are_two_disjoint_sets_of_as_many_as_are_drawn(cell_of):
    subject = load_subject(*cell_of(*CELLS[1], samples=50), torch.device("cpu"))
    references, held_out = held_out_texts(subject, TextSamples().num_texts(subject))
    assert len(references) == len(held_out) == 50
    every = sentences(160, 1)
    assert set(references) | set(held_out) <= set(every)
    assert not set(references) & set(held_out)


def test_a_stream_is_cut_into_passages_within_the_budget_of_windows(cell_of):
    spec, prepared, bundle = cell_of(*CELLS[0])
    subject = load_subject(spec, prepared, bundle, torch.device("cpu"))
    assert TextSamples().num_texts(subject) == min(1000 * 8 // TOKENS, len(HELD_OUT_STREAM) // TOKENS // 2)
    references, held_out = held_out_texts(subject, TextSamples().num_texts(subject))
    assert all(text in HELD_OUT_STREAM and len(text) == TOKENS for text in [*references, *held_out])
    few = dataclasses.replace(
        subject, spec=spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"samples": 30})})
    )
    assert TextSamples().num_texts(few) == 0


def test_training_texts_of_a_stream_overlap_so_that_no_span_is_lost(cell_of, monkeypatch):
    monkeypatch.setattr("pipeline.data.shards.GROUP_BYTES", 64)
    _, prepared, _ = cell_of(*CELLS[0])
    stream = " ".join(sentences(300, 0))
    batches = [text for batch in training_texts(prepared, 20) for text in batch]
    assert len(batches) > 100
    for start in range(0, len(stream) - 20, 7):
        assert any(stream[start : start + 20] in text for text in batches)
    assert all(text in stream for text in batches)


def test_a_model_that_returns_training_texts_is_found_out_through_the_evaluation(cell_of):
    spec, prepared, bundle = cell_of(*CELLS[1])
    subject = load_subject(spec, prepared, bundle, torch.device("cpu"))
    rows = prepared.load_split("train").x
    metric = TextSamples()
    copier = {chunk.name: rows[chunk.start : chunk.stop].to(torch.int32) for chunk in metric.chunks(subject)}
    scores = metric.finish(copier, subject)
    evidence = evidence_of(scores)
    assert judge(evidence).findings == ("copies",)
    assert Score.from_dict(json.loads(json.dumps(scores["copied_share"].as_dict()))) == scores["copied_share"]
    shown = scores["copied_share"].shown
    assert shown
    assert all(example["text"] == example["source"] for example in shown)


def test_broken_weights_are_named(cell_of):
    subject = load_subject(*cell_of(*CELLS[1]), torch.device("cpu"))
    next(iter(subject.model.parameters())).fill_(float("nan"))
    with pytest.raises(TrainingFailedError, match="not finite"):
        TextSamples().measure(subject)
