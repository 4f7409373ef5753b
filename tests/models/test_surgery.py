"""Weights carried over: tokens and labels keep their rows whatever their identifiers; what grew begins at the mean."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.data.characters import CharactersCodec
from pipeline.data.codec import make_codec
from pipeline.data.layout import Layout
from pipeline.data.subwords import ALPHABET, BpeCodec, byte_of_each
from pipeline.errors import TransferError
from pipeline.models import build_model
from pipeline.models.base import Batch, GenerativeModel, Noise, make_generator
from pipeline.models.surgery import Donor, axes_of, inherit
from pipeline.spec import BpeCodecSpec, RunSpec, make_spec
from tests.conftest import CELLS, cell_spec, prepared_in_memory

TOKEN_CELLS = [(family, modality) for family, modality in CELLS if family == "rnn" or modality == "text"]
SIGNAL_CELLS = [cell for cell in CELLS if cell not in TOKEN_CELLS]


def varied(spec: RunSpec, layout: Layout) -> GenerativeModel:
    """A model in which no two rows are alike, so that a row out of place is seen."""
    model = build_model(spec, layout)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model.eval()


def loaded(spec: RunSpec, layout: Layout, weights: dict[str, Tensor]) -> GenerativeModel:
    model = build_model(spec, layout)
    model.load_state_dict(weights)
    return model.eval()


def sums_of(model: GenerativeModel, x: Tensor) -> dict[str, float]:
    batch = Batch(x, torch.full((len(x),), -1), torch.arange(len(x)))
    sums, _ = model.evaluate(batch, Noise(make_generator(3, "test")))
    return model.summarise(sums)


def permuted(layout: Layout, meanings: list[Hashable]) -> tuple[Layout, list[Hashable], Tensor]:
    """The same tokens with their identifiers shuffled, and for each old identifier the new one."""
    order = torch.randperm(layout.vocabulary, generator=torch.Generator().manual_seed(1)).tolist()
    place: dict[Any, int] = {old: new for new, old in enumerate(order)}
    names = ("begin_token", "end_token", "pad_token")
    marks = {name: place.get(getattr(layout, name)) for name in names}
    return (
        replace(layout, **marks),
        [meanings[old] for old in order],
        torch.tensor([place[old] for old in range(layout.vocabulary)]),
    )


@pytest.mark.parametrize(("family", "modality"), TOKEN_CELLS)
def test_with_other_identifiers_for_the_same_tokens_every_score_is_the_same(family: str, modality: str) -> None:
    spec = cell_spec(family, modality)
    prepared = prepared_in_memory(spec)
    donor, x = varied(spec, prepared.layout), prepared.load_split("validation").x.long()
    meanings: list[Hashable] = list(prepared.codec.meanings())
    assert len(set(meanings)) == prepared.layout.vocabulary
    layout, renamed, place = permuted(prepared.layout, meanings)
    weights, taken = inherit(spec, layout, renamed, Donor(prepared.layout, meanings, donor.state_dict()))
    assert taken.names("new") == [] and taken.names("resized")
    expected = sums_of(donor, x)
    for name, value in sums_of(loaded(spec, layout, weights), place[x]).items():
        assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


def test_tokens_of_an_example_laid_flat_keep_their_places() -> None:
    tree = cell_spec("gan", "text").as_dict()
    tree["model"]["backbone"] = {"kind": "mlp", "hidden": [8]}
    spec = make_spec(tree)
    prepared = prepared_in_memory(spec)
    donor = varied(spec, prepared.layout)
    meanings: list[Hashable] = list(prepared.codec.meanings())
    layout, renamed, place = permuted(prepared.layout, meanings)
    weights, _ = inherit(spec, layout, renamed, Donor(prepared.layout, meanings, donor.state_dict()))
    z = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(loaded(spec, layout, weights).decode(z), place[donor.decode(z)])  # type: ignore[operator]


@pytest.mark.parametrize(("family", "modality"), CELLS)
def test_an_equal_model_takes_over_everything_as_it_is(family: str, modality: str) -> None:
    spec = cell_spec(family, modality)
    prepared = prepared_in_memory(spec)
    donor, meanings = varied(spec, prepared.layout), prepared.codec.meanings()
    weights, taken = inherit(spec, prepared.layout, meanings, Donor(prepared.layout, meanings, donor.state_dict()))
    assert taken.names("new") == taken.names("resized") == []
    assert all(torch.equal(weights[name], value) for name, value in donor.state_dict().items())
    assert "0 resized, 0 made new" in taken.in_words()


def characters(texts: list[str], **keys: Any) -> CharactersCodec:
    spec = make_spec(
        {
            "name": "tiny",
            "data": {
                "source": {"kind": "builtin", "name": "digits"},
                "codec": {"kind": "characters", "packing": "windows", "length": 8, **keys},
            },
            "model": {
                "family": {"kind": "rnn"},
                "backbone": {"kind": "recurrent", "hidden_size": 12, "embedding_size": 6},
            },
        }
    )
    codec = make_codec(spec.data.codec)
    assert isinstance(codec, CharactersCodec)
    codec.fit(texts)
    return codec


def spec_of(codec: Any, tied: bool = False) -> RunSpec:
    return make_spec(
        {
            "name": "tiny",
            "data": {
                "source": {"kind": "builtin", "name": "digits"},
                "codec": codec.spec.model_dump(mode="json"),
            },
            "model": {
                "family": {"kind": "rnn", "tied_embeddings": tied},
                "backbone": {"kind": "recurrent", "hidden_size": 12, "embedding_size": 6},
            },
        }
    )


@given(
    text=st.text("abcdefgh", min_size=2, max_size=20),
    more=st.sets(st.sampled_from("ABCDEXYZ01234"), max_size=9),
    roles=st.booleans(),
    tied=st.booleans(),
)
def test_an_old_text_loses_no_more_than_what_new_tokens_take_of_the_softmax(
    text: str, more: set[str], roles: bool, tied: bool
) -> None:
    before = characters(["abcdefgh"])
    now = characters(["abcdefgh" + "".join(more)], special_tokens=["<|user|>", "<|system|>"] if roles else [])
    spec, spec_now = spec_of(before, tied), spec_of(now, tied)
    donor = varied(spec, before.layout())
    weights, _ = inherit(
        spec_now, now.layout(), now.meanings(), Donor(before.layout(), before.meanings(), donor.state_dict())
    )
    heir = loaded(spec_now, now.layout(), weights)
    # Without the end token, which is no part of the text.
    old, new = (torch.from_numpy(codec.encode(text)[:-1].astype(np.int64)) for codec in (before, now))

    def next_nats(model: Any, tokens: Tensor, vocabulary: int) -> Tensor:
        """The surprise at every token `[V]` that may come last."""
        candidates = tokens.repeat(vocabulary, 1)
        candidates[:, -1] = torch.arange(vocabulary)
        nats: Tensor = model.token_nats(candidates)[:, -1]
        return nats

    then, since = next_nats(donor, old, before.vocabulary), next_nats(heir, new, now.vocabulary)
    shared = torch.tensor([now.meanings().index(meaning) for meaning in before.meanings()])
    share = 1 - (-since[shared]).exp().sum()  # of the new tokens
    torch.testing.assert_close(since[shared], then - torch.log1p(-share), rtol=1e-4, atol=1e-4)
    # A new token has the mean of all logits, which is at most what the average token has.
    assert float(share) <= (now.vocabulary - before.vocabulary) / now.vocabulary + 1e-5


def test_tokens_that_are_gone_leave_their_share_to_the_others() -> None:
    before, now = characters(["abcdefgh"]), characters(["abcd"])
    donor = varied(spec_of(before), before.layout())
    weights, taken = inherit(
        spec_of(now), now.layout(), now.meanings(), Donor(before.layout(), before.meanings(), donor.state_dict())
    )
    assert taken.new_tokens == () and set(taken.names("resized")) == {"embedding.weight", "head.weight", "head.bias"}
    places = [before.meanings().index(meaning) for meaning in now.meanings()]
    assert torch.equal(weights["head.bias"], donor.state_dict()["head.bias"][places])
    assert torch.equal(weights["embedding.weight"][-1], donor.state_dict()["embedding.weight"][-1])  # the start


def test_a_character_is_the_subword_of_its_bytes() -> None:
    letters = characters(["abé"])
    subwords = BpeCodec(BpeCodecSpec(kind="bpe", vocabulary_size=300))
    subwords.fit(["abé ab ab abé"] * 20)
    meanings = subwords.meanings()
    assert len(meanings) == subwords.vocabulary and len(set(meanings)) == len(meanings)
    assert b"ab" in meanings and set(letters.meanings()) - set(meanings) <= {"unknown", "é".encode()}
    (identifier,) = subwords.symbols(["a"])[0]
    assert meanings[identifier] == b"a"


def test_each_character_of_the_byte_alphabet_stands_for_one_byte() -> None:
    assert sorted(byte_of_each()) == ALPHABET and sorted(byte_of_each().values()) == list(range(256))


@pytest.mark.parametrize("backbone", [None, {"kind": "mlp", "hidden": [8]}, {"kind": "resnet", "channels": [4, 8]}])
def test_channels_of_another_number_are_the_mean_and_share_the_sum(backbone: dict[str, Any] | None) -> None:
    grey_tree = cell_spec("vae", "image").as_dict()
    if backbone is not None:
        grey_tree["model"]["backbone"] = backbone
    spec = make_spec(grey_tree)
    prepared = prepared_in_memory(spec)
    donor = varied(spec, prepared.layout)
    tree = spec.as_dict()
    tree["data"]["codec"]["channels"] = 3
    colour = make_spec(tree)
    layout = make_codec(colour.data.codec).layout()
    weights, taken = inherit(colour, layout, (), Donor(prepared.layout, (), donor.state_dict()))
    assert taken.names("new") == []
    heir = loaded(colour, layout, weights)
    grey = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(heir.encode(grey.expand(-1, 3, -1, -1))[0], donor.encode(grey)[0])  # type: ignore[operator]
    z = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(heir.decode(z), donor.decode(z).expand(-1, 3, -1, -1))  # type: ignore[operator]
    # And back again: what was grey is the same grey.
    again, _ = inherit(spec, prepared.layout, (), Donor(layout, (), weights))
    torch.testing.assert_close(again, donor.state_dict())


def conditioned(family: str, modality: str) -> RunSpec:
    tree = cell_spec(family, modality).as_dict()
    tree["model"]["condition"] = {"on": ["label"], "size": 6}
    return make_spec(tree)


@pytest.mark.parametrize(("family", "modality"), CELLS)
def test_labels_go_by_their_names_and_the_unknown_one_stays_last(family: str, modality: str) -> None:
    spec = conditioned(family, modality)
    prepared = prepared_in_memory(spec)
    before = replace(prepared.layout, labels=("cat", "dog", "owl"), label_counts=(3, 2, 1))
    now = replace(prepared.layout, labels=("ant", "cat", "owl", "rat"), label_counts=(1, 1, 1, 1))
    donor, meanings = varied(spec, before), prepared.codec.meanings()
    if donor.num_parameters() == varied(cell_spec(family, modality), before).num_parameters():
        pytest.skip("the family cannot be asked for anything yet")
    weights, taken = inherit(spec, now, meanings, Donor(before, meanings, donor.state_dict()))
    assert taken.names("new") == [] and taken.new_labels == ("ant", "rat")
    tables = [name for name in weights if donor.state_dict()[name].shape != weights[name].shape]
    assert tables and taken.names("resized") == tables
    for name in tables:
        old, new = donor.state_dict()[name], weights[name]
        assert torch.equal(new[[1, 2, 4]], old[[0, 2, 3]])
        torch.testing.assert_close(new[[0, 3]], old[:3].mean(0).expand(2, *old.shape[1:]))


@pytest.mark.parametrize(("family", "modality"), CELLS)
def test_a_model_that_learns_to_be_asked_begins_by_doing_as_before(family: str, modality: str) -> None:
    plain, spec = cell_spec(family, modality), conditioned(family, modality)
    prepared = prepared_in_memory(spec)
    layout = replace(prepared.layout, labels=("cat", "dog"), label_counts=(1, 1))
    donor, meanings = varied(plain, prepared.layout), prepared.codec.meanings()
    weights, taken = inherit(spec, layout, meanings, Donor(prepared.layout, meanings, donor.state_dict()))
    assert set(taken.names("new")) == set(weights) - set(donor.state_dict())
    for name, old in donor.state_dict().items():
        kept = weights[name][tuple(slice(extent) for extent in old.shape)]
        assert torch.equal(kept, old) and weights[name].norm() == pytest.approx(old.norm()), name  # the rest is zero
    if family == "gan":
        return  # its critic has a projection of the condition, new, and noise also draws what is asked for
    heir, x = loaded(spec, layout, weights), prepared.load_split("validation").x
    batch = Batch(layout.to_model(x), torch.arange(len(x)) % 2, torch.arange(len(x)))
    sums = [model.evaluate(batch, Noise(make_generator(3, "test")))[0] for model in (heir, donor)]
    for name, value in sums[1].items():
        torch.testing.assert_close(sums[0][name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "modality"), SIGNAL_CELLS)
def test_with_another_size_kernels_are_kept_and_what_depends_on_it_is_made_new(family: str, modality: str) -> None:
    spec = cell_spec(family, modality)
    prepared = prepared_in_memory(spec)
    donor = varied(spec, prepared.layout)
    tree = spec.as_dict()
    tree["data"]["codec"] |= {"size": [20, 20]} if modality == "image" else {"num_samples": 400}
    larger = make_spec(tree)
    layout = make_codec(larger.data.codec).layout()
    weights, taken = inherit(larger, layout, (), Donor(prepared.layout, (), donor.state_dict()))
    kernels = [name for name, value in donor.state_dict().items() if value.dim() > 2]
    assert kernels and set(kernels) <= set(taken.names("kept"))
    assert taken.names("new") and not taken.names("resized")
    assert all(torch.equal(weights[name], donor.state_dict()[name]) for name in kernels)


def test_nothing_that_fits_is_an_error_that_says_what_was_seen() -> None:
    spec = cell_spec("rnn", "text")
    prepared = prepared_in_memory(spec)
    with pytest.raises(TransferError, match=r"none of the model's \d+ tensors.*embedding\.weight"):
        inherit(spec, prepared.layout, (), Donor(prepared.layout, (), {"other": torch.zeros(3)}))


@pytest.mark.parametrize(("family", "modality"), TOKEN_CELLS)
def test_what_grows_with_the_vocabulary_is_found(family: str, modality: str) -> None:
    spec = cell_spec(family, modality)
    layout = prepared_in_memory(spec).layout
    axes = axes_of(spec, layout)
    grown = build_model(spec, replace(layout, vocabulary=layout.vocabulary + 3)).state_dict()
    differing = {
        name for name, value in build_model(spec, layout).state_dict().items() if value.shape != grown[name].shape
    }
    assert differing == set(axes)


@pytest.mark.parametrize(("history", "rows_above", "columns_above"), [(1, 0, 1), (1, 1, 7), (2, 1, 3), (8, 3, 3)])
def test_pixels_that_see_others_before_them_take_over_what_an_equal_model_knows(
    history: int, rows_above: int, columns_above: int
) -> None:
    tree = cell_spec("rnn", "image").as_dict()
    tree["model"]["family"] |= {"history": history, "rows_above": rows_above, "columns_above": columns_above}
    spec = make_spec(tree)
    layout = make_codec(spec.data.codec).layout()
    assert layout.raster == (6, 6, 1)
    assert {"embedding.weight", "head.weight", "head.bias"} <= axes_of(spec, layout).keys()
