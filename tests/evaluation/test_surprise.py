"""Per-token surprise: it adds up to the likelihood, and its pieces to the text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.data.codec import make_codec
from pipeline.data.prepared import SplitArrays
from pipeline.evaluation.surprise import PASSAGE_TOKENS, can_tell_surprise, held_out_passage, surprise
from pipeline.models import build_model
from pipeline.models.base import Batch, Noise, make_generator
from tests.evaluation.conftest import DOCUMENTS, MLP, PICTURES, RECURRENT, WINDOWS

TEXTS = {"documents": "straße → 東京 é", "windows": "to be or not to be"}


def parts(spec_of, codec_values, family, backbone=RECURRENT):
    spec = spec_of(codec_values, family, backbone)
    codec = make_codec(spec.data.codec, single_document=True)
    if codec.needs_fit:
        codec.fit([TEXTS["windows"] * 20, TEXTS["documents"]])
    return build_model(spec, codec.layout()).eval(), codec, codec.layout()


@pytest.mark.parametrize("codec", [DOCUMENTS, WINDOWS, {**DOCUMENTS, "kind": "bpe", "vocabulary_size": 300}])
def test_pieces_make_the_text_and_nats_the_likelihood(spec_of, codec):
    codec = {**codec, "length": 40} if codec["kind"] != "characters" else codec
    model, made, layout = parts(spec_of, codec, {"kind": "rnn"})
    text = TEXTS["windows" if layout.continuous else "documents"]
    tokens = torch.from_numpy(made.encode(text).astype(np.int64))
    pieces = surprise(model, made, layout, tokens)
    assert "".join(piece.piece for piece in pieces) == text
    batch = Batch(tokens.unsqueeze(0), torch.tensor([-1]), torch.tensor([0]))
    sums, _ = model.evaluate(batch, Noise(make_generator(0, "test")))
    assert math.fsum(piece.nats or 0.0 for piece in pieces) == pytest.approx(float(sums["nats"]), rel=1e-5)
    assert (pieces[0].nats is None) == layout.continuous


def test_bytes_of_one_character_are_one_piece(spec_of):
    model, codec, layout = parts(spec_of, {**DOCUMENTS, "length": 40}, {"kind": "rnn"})
    pieces = surprise(model, codec, layout, torch.from_numpy(codec.encode("é東x").astype(np.int64)))
    assert [piece.piece for piece in pieces] == ["é", "東", "x", ""]  # the last is the end of the document


def test_a_token_autoencoders_surprise_is_its_decoders_at_the_mean(spec_of):
    model, codec, layout = parts(spec_of, DOCUMENTS, {"kind": "vae", "latent_size": 4})
    tokens = torch.from_numpy(codec.encode("to be").astype(np.int64))
    mean, _ = model.encode(tokens.unsqueeze(0))
    expected = -float(model.log_likelihood(tokens.unsqueeze(0), mean, None).detach())
    assert math.fsum(piece.nats for piece in surprise(model, codec, layout, tokens)) == pytest.approx(
        expected, rel=1e-5
    )


def test_what_is_skipped_is_read(spec_of):
    model, codec, layout = parts(spec_of, WINDOWS, {"kind": "rnn"})
    tokens = torch.from_numpy(codec.encode(TEXTS["windows"]).astype(np.int64))
    assert surprise(model, codec, layout, tokens, skip=5) == surprise(model, codec, layout, tokens)[5:]


def test_passages_are_documents_or_stretches_of_the_stream_after_a_run_up(spec_of):
    _, _, layout = parts(spec_of, WINDOWS, {"kind": "rnn"})
    stream = torch.arange(2000) % layout.vocabulary
    arrays = SplitArrays(stream[:1992].reshape(-1, 8), torch.full((249,), -1), [], stream[1992:])
    tokens, skip = held_out_passage(arrays, layout, 2)
    assert tokens[skip:].tolist() == stream[2 * PASSAGE_TOKENS : 3 * PASSAGE_TOKENS].tolist()
    assert held_out_passage(arrays, layout)[1] == 0
    _, _, layout = parts(spec_of, DOCUMENTS, {"kind": "rnn"})
    assert held_out_passage(SplitArrays(torch.arange(48).reshape(2, 24), torch.zeros(2), [], stream[:0]), layout, 3)[
        0
    ].tolist() == list(range(24, 48))


def test_only_models_of_text_with_a_likelihood_have_a_surprise(spec_of):
    model, _, layout = parts(spec_of, WINDOWS, {"kind": "rnn"})
    assert can_tell_surprise(model, layout)
    spec = spec_of(PICTURES, {"kind": "vae", "latent_size": 4}, MLP)
    picture = make_codec(spec.data.codec).layout()
    assert not can_tell_surprise(build_model(spec, picture), picture)
