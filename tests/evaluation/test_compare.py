"""Two models on the same text whose vocabularies differ: each reads it through its own, at the right price."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.characters import CharactersCodec
from pipeline.data.codec import make_codec
from pipeline.data.prepared import SplitArrays
from pipeline.errors import ComparisonError
from pipeline.evaluation.compare import read_through
from pipeline.evaluation.evaluate import load_subject, measure
from pipeline.evaluation.likelihood import Likelihood
from pipeline.evaluation.paired import pair
from pipeline.generation.sampling import save_bundle
from pipeline.models import build_model
from pipeline.spec import BytesCodecSpec, CharactersCodecSpec, RunSpec
from tests.evaluation.conftest import RECURRENT, WINDOWS

RNN = {"kind": "rnn"}
LETTERS = list("abcd")


# --- vocabularies ---------------------------------------------------------------------------------------------


def codec_of(text: str, packing: str = "windows", separate: bool = True) -> CharactersCodec:
    codec = make_codec(CharactersCodecSpec(kind="characters", packing=packing, length=8), not separate)  # type: ignore[arg-type]
    codec.fit([text])
    assert isinstance(codec, CharactersCodec)
    return codec


def arrays_of(codec: CharactersCodec, text: str) -> SplitArrays:
    tokens = torch.from_numpy(codec.encode(text).astype(np.int64))
    whole = len(tokens) // 8 * 8
    x = tokens[:whole].view(-1, 8).to(torch.uint8)
    return SplitArrays(x, torch.full((len(x),), -1), [str(row) for row in range(len(x))], tokens[whole:])


@pytest.mark.parametrize("own", ["abcdefgh", "aceg", "bdxyz", "hgfedcba"])
def test_a_text_read_through_another_vocabulary_is_that_text(own: str) -> None:
    held, mine = codec_of("abcdefgh"), codec_of(own)
    text = "abacabadabacabaefghfedcba"
    arrays = arrays_of(held, text)
    read, charge = read_through(mine, held, arrays, len(arrays))
    expected = arrays_of(mine, text)
    assert torch.equal(read.x.long(), expected.x.long()) and torch.equal(read.tail.long(), expected.tail)
    unknown = sum(character not in own for character in text)
    stands_for = sum(character not in own for character in "abcdefgh") + 1
    assert charge == pytest.approx(unknown * math.log(stands_for))


def test_the_same_codec_costs_nothing_and_others_are_refused() -> None:
    held = codec_of("abc")
    arrays = arrays_of(held, "abcabcabcabc")
    assert read_through(codec_of("abc"), held, arrays, 1) == (arrays, 0.0)
    byte_codec = make_codec(BytesCodecSpec(kind="bytes", length=8))
    for own in (codec_of("abc", "documents"), codec_of("abd", separate=False), byte_codec):
        with pytest.raises(ComparisonError, match="only vocabularies of characters in the same packing"):
            read_through(own, held, arrays, 1)


def test_a_smaller_vocabulary_gains_nothing_by_not_knowing(
    spec_of: Callable[..., RunSpec], prepare_small: Callable, tmp_path: Path
) -> None:
    """Two uniform models, one of all letters, one that knows half of them: the one unknown symbol is likelier than each
    of the letters that it stands for, and charged so that both spread their mass over the same alphabet."""
    spec = spec_of(WINDOWS, RNN, RECURRENT)
    generator = np.random.default_rng(0)
    whole = "".join(generator.choice(LETTERS, 4000))
    prepared = prepare_small(spec, {"train": [(whole, None)], "test": [(whole[:2000], None)]})
    half = make_codec(spec.data.codec, single_document=True)
    half.fit(["ab"])

    def uniform(codec: CharactersCodec, folder: str) -> Path:
        model = build_model(spec, codec.layout())
        for parameter in model.parameters():
            parameter.data.zero_()
        manifest = replace(prepared.manifest, codec=codec.state(), layout=codec.layout().as_dict())
        return save_bundle(tmp_path / folder, spec, manifest.as_dict(), model.state_dict())

    knows_all = measure(spec, prepared, uniform(prepared.codec, "all"), ["nats_per_token"])["nats_per_token"]
    assert knows_all.score.value == pytest.approx(math.log(5), abs=1e-5)  # a, b, c, d, unknown
    bundle = uniform(half, "half")
    knows_half = measure(spec, prepared, bundle, ["nats_per_token"])["nats_per_token"]
    unknown = sum(letter in "cd" for letter in whole[:2000]) / 1999
    # Three symbols (a, b, unknown), of which the last is spread over c, d and what is unknown to both.
    assert knows_half.score.value == pytest.approx(math.log(3) + unknown * math.log(3), abs=2e-3)
    subject = load_subject(spec, prepared, bundle, torch.device("cpu"))
    uncharged = replace(subject, surcharge_nats=0.0)
    sums = Likelihood().measure(uncharged)
    assert Likelihood().finish(sums, uncharged)["nats_per_token"].value == pytest.approx(math.log(3), abs=1e-5)
    compared = pair("nats_per_token", knows_half, knows_all)
    assert compared.at(lambda before, after: before - after) == pytest.approx(
        knows_half.score.value - knows_all.score.value, abs=1e-9
    )
