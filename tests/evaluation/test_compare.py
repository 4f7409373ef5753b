"""Two models on the same blocks: the gain and its interval, what is refused, vocabularies read through each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.codec import make_codec
from pipeline.data.prepared import SplitArrays
from pipeline.data.text import CharactersCodec
from pipeline.errors import ComparisonError
from pipeline.evaluation.compare import Comparison, Measured, better_than, compare, read_through
from pipeline.evaluation.evaluate import evaluate, load_subject, measure
from pipeline.evaluation.likelihood import Likelihood
from pipeline.evaluation.metric import Score, student_t_975
from pipeline.generation.sampling import save_bundle
from pipeline.models import build_model
from pipeline.spec import BytesCodecSpec, CharactersCodecSpec, RunSpec
from tests.evaluation.conftest import MLP, PICTURES, RECURRENT, WINDOWS, pictures

RNN = {"kind": "rnn"}
LETTERS = list("abcd")


def measured(values: torch.Tensor, better: str = "lower", blocks: int = 20, **protocol: object) -> Measured:
    """A mean over examples, in blocks."""
    parts = values.double().tensor_split(blocks)
    sums = {
        number: {"sum": part.sum(), "n": torch.tensor(float(len(part)), dtype=torch.float64)}
        for number, part in enumerate(parts)
    }
    score = Score(float(values.mean()), "nats", better, {"split": "test", "seed": 0, **protocol})  # type: ignore[arg-type]
    return Measured(score, sums, lambda part: float(part["sum"] / part["n"]))


def test_the_gain_of_a_mean_has_the_interval_of_the_paired_t_test() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(40, generator=generator).double() + 5, torch.randn(40, generator=generator).double() + 4
    found = compare("nll", measured(before, blocks=40), measured(after, blocks=40))
    difference = before - after
    half = student_t_975(39) * float(difference.std()) / math.sqrt(40)
    assert found.gain == pytest.approx(float(difference.mean()), abs=1e-9)
    assert found.interval == pytest.approx((found.gain - half, found.gain + half), abs=1e-9)


def test_what_is_hard_for_both_cancels() -> None:
    """Examples differ by ten times more than the models do: apart they look alike, paired they do not."""
    generator = torch.Generator().manual_seed(1)
    hardness = 10 * torch.randn(400, generator=generator)
    before = hardness + 0.5 + 0.1 * torch.randn(400, generator=generator)
    after = hardness + 0.1 * torch.randn(400, generator=generator)
    found = compare("nll", measured(before), measured(after))
    assert found.interval is not None and 0.45 < found.interval[0] < 0.5 < found.interval[1] < 0.55
    assert better_than(found, 0.0)[0] and not better_than(found, 0.5)[0]


def test_the_interval_of_no_difference_excludes_zero_about_5_times_in_100() -> None:
    generator = torch.Generator().manual_seed(2)
    wrong = 0
    for _ in range(300):
        shared = torch.randn(200, generator=generator)
        one, two = (shared + 0.3 * torch.randn(200, generator=generator) for _ in range(2))
        low, high = compare("nll", measured(one), measured(two)).interval or (0, 0)
        wrong += not low <= 0 <= high
    assert 0.02 <= wrong / 300 <= 0.10


@pytest.mark.parametrize(("better", "sign"), [("lower", 1), ("higher", -1)])
def test_a_gain_is_positive_when_the_challenger_is_better(better: str, sign: int) -> None:
    found = compare("x", measured(torch.full((40,), 3.0), better), measured(torch.full((40,), 2.0), better))
    assert found.gain == pytest.approx(sign) and found.interval == pytest.approx((sign, sign))


def test_scores_of_different_protocols_are_refused_and_a_seed_is_no_difference() -> None:
    one, two = measured(torch.ones(40), examples=40), measured(torch.ones(40), examples=41)
    with pytest.raises(ComparisonError, match="examples 40 and 41"):
        compare("x", one, two)
    seeded = replace(one, score=replace(one.score, protocol={**one.score.protocol, "seed": 5}))
    assert compare("x", one, seeded).gain == 0
    with pytest.raises(ComparisonError, match="units 'nats' and 'bits'"):
        compare("x", one, replace(one, score=replace(one.score, unit="bits")))
    with pytest.raises(ComparisonError, match="neither more nor less"):
        compare("x", *[replace(one, score=replace(one.score, better=None))] * 2)
    with pytest.raises(ComparisonError, match="20 blocks and the challenger on 10"):
        compare("x", one, measured(torch.ones(40), blocks=10, examples=40))


def test_without_an_interval_nothing_is_promoted() -> None:
    found = compare("x", measured(torch.full((8,), 3.0), blocks=4), measured(torch.zeros(8), blocks=4))
    assert found.interval is None and found.gain == 3
    assert better_than(found, 0.0) == (False, better_than(found, 0.0)[1])
    assert "too few for an interval" in better_than(found, 0.0)[1]


def test_a_model_against_itself_gains_exactly_nothing(
    spec_of: Callable[..., RunSpec], prepare_small: Callable, bundle_of: Callable
) -> None:
    spec = spec_of(PICTURES, {"kind": "vae", "latent_size": 3}, MLP)
    prepared = prepare_small(spec, {"train": pictures(60), "test": pictures(70, seed=1)})
    bundle = bundle_of(spec, prepared)
    scores = evaluate(spec, prepared, bundle)
    for key in ("nll_nats", "frechet"):
        one, two = (measure(spec, prepared, bundle, key) for _ in range(2))
        assert one.score.value == scores[f"test/{key}"].value
        found: Comparison = compare(key, one, two)
        assert found.gain == 0 and found.interval == (0, 0)
    with pytest.raises(ComparisonError, match="gives no 'bits_per_char'"):
        measure(spec, prepared, bundle, "bits_per_char")


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

    knows_all = measure(spec, prepared, uniform(prepared.codec, "all"), "nats_per_token")
    assert knows_all.score.value == pytest.approx(math.log(5), abs=1e-5)  # a, b, c, d, unknown
    bundle = uniform(half, "half")
    knows_half = measure(spec, prepared, bundle, "nats_per_token")
    unknown = sum(letter in "cd" for letter in whole[:2000]) / 1999
    # Three symbols (a, b, unknown), of which the last is spread over c, d and what is unknown to both.
    assert knows_half.score.value == pytest.approx(math.log(3) + unknown * math.log(3), abs=2e-3)
    subject = load_subject(spec, prepared, bundle, torch.device("cpu"))
    uncharged = replace(subject, surcharge_nats=0.0)
    sums = Likelihood().measure(uncharged)
    assert Likelihood().finish(sums, uncharged)["nats_per_token"].value == pytest.approx(math.log(3), abs=1e-5)
    assert compare("nats_per_token", knows_half, knows_all).gain == pytest.approx(
        knows_half.score.value - knows_all.score.value, abs=1e-9
    )
