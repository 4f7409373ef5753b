"""The view into a latent space: its numbers against the model's own scores, closed forms and a reference PCA."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from pipeline.data.prompts import encode_prompts
from pipeline.evaluation.latent import (
    Posteriors,
    between,
    encode_all,
    look_into,
    principal_map,
    traversal,
    usage,
)
from pipeline.models import build_model
from pipeline.models.base import Batch, Noise, SamplingOptions, make_generator
from pipeline.models.conditioning import Asked
from pipeline.spec import make_spec
from tests.conftest import cell_spec, prepared_in_memory

CELLS = [("vae", "image"), ("vae", "audio"), ("vae", "text"), ("gan", "image"), ("gan", "text")]


def _cell(family: str, modality: str):
    spec = cell_spec(family, modality)
    prepared = prepared_in_memory(spec, validation=12)
    model = build_model(spec, prepared.layout).eval().requires_grad_(False)
    return model, prepared.codec, prepared.layout, prepared.load_split("validation")


def _equal(a, b) -> bool:
    return a == b if isinstance(a, str) else bool(np.array_equal(a, b))


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_the_dimensions_add_up_to_the_models_own_scores(modality):
    model, _, layout, held_out = _cell("vae", modality)
    used = usage(encode_all(model, layout, held_out.x, 0))
    batch = Batch(layout.to_model(held_out.x), held_out.label, torch.arange(len(held_out)))
    scores = model.summarise(model.evaluate(batch, Noise(make_generator(0, "any")))[0])
    assert sum(used.kl_nats) == pytest.approx(scores["kl_nats"], rel=1e-5)  # of single precision
    assert len(used.active) == scores["active_units"]


def test_a_conditional_model_is_told_the_labels_and_prompts_of_what_is_encoded():
    tree = cell_spec("vae", "image").as_dict()
    tree["data"]["source"] = {"kind": "files", "path": "x", "label_from": "folder", "prompt_pattern": "(.)"}
    tree["data"]["prompt"] = {"of": "source", "length": 8}
    tree["model"]["condition"] = {"on": ["label", "prompt"], "size": 8}
    spec = make_spec(tree)
    prepared = prepared_in_memory(spec, validation=12)
    words = ["one" if i % 3 else "two" for i in range(12)]
    prompt = torch.from_numpy(encode_prompts(words, 8).astype("int16"))
    held_out = replace(prepared.load_split("validation"), label=torch.arange(12) % 2, prompt=prompt)
    layout = replace(prepared.layout, labels=("a", "b"), prompts=("one", "two"), prompt_length=8)
    model = build_model(spec, layout).eval().requires_grad_(False)
    # As they are initialised, conditions hardly matter.
    torch.nn.init.normal_(model.encoder.head.weight, generator=torch.Generator().manual_seed(0))
    view = look_into(model, prepared.codec, layout, held_out, seed=0)

    def kl_nats(**changes):
        batch = Batch(layout.to_model(held_out.x), held_out.label, torch.arange(12), prompt.long())
        return model.summarise(model.evaluate(replace(batch, **changes), Noise(make_generator(0, "any")))[0])["kl_nats"]

    assert view is not None and sum(view.usage.kl_nats) == pytest.approx(kl_nats(), rel=1e-5)
    for other in ({"prompt": prompt.long().flip(0)}, {"label": 1 - held_out.label}):
        assert kl_nats(**other) != pytest.approx(kl_nats(), rel=1e-3)


def test_kl_is_zero_at_the_prior_and_half_the_square_of_a_shift():
    posteriors = Posteriors(torch.tensor([[0.0, 3.0], [0.0, -3.0]]).double(), torch.zeros(2, 2).double())
    used = usage(posteriors)
    assert used.kl_nats == [0.0, 4.5]
    assert used.variance == [0.0, 9.0]
    assert (used.order, used.active) == ([1, 0], [1])


def test_a_traversal_changes_one_dimension_alone():
    path = traversal(torch.tensor([1.0, 2.0, 3.0]), 1, [-3.0, 0.0, 3.0])
    assert path.tolist() == [[1.0, -3.0, 3.0], [1.0, 0.0, 3.0], [1.0, 3.0, 3.0]]


def test_a_great_circle_keeps_the_length_that_a_straight_line_loses():
    a, b = torch.tensor([5.0, 0.0]), torch.tensor([0.0, 5.0])
    path = between(a, b, 5)
    assert torch.allclose(path.norm(dim=1), torch.full((5,), 5.0), atol=1e-5)
    assert torch.allclose(path[2], torch.tensor([5.0, 5.0]) / math.sqrt(2), atol=1e-5)
    assert torch.lerp(a, b, 0.5).norm() < 3.6


@pytest.mark.parametrize("b", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.3, 4.0]])
def test_an_interpolation_ends_where_it_should_and_is_finite(b):
    path = between(torch.tensor([1.0, 0.0]), torch.tensor(b), 6)
    assert torch.isfinite(path).all()
    assert path[0].tolist() == [1.0, 0.0]
    assert torch.equal(path[-1], torch.tensor(b))


def test_the_map_is_the_pca_of_scikit_learn():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor(
        [3.0, 0.1, 2.0, 1.0, 0.5, 0.2]
    )
    found = principal_map(x, [""] * 200)
    reference = PCA(2, svd_solver="full").fit(x.numpy())
    expected = reference.transform(x.numpy())
    signs = np.sign((expected * found.points.numpy()).sum(0))
    assert np.allclose(found.points.numpy(), expected * signs, atol=1e-10)
    assert np.allclose(found.explained, reference.explained_variance_ratio_, rtol=1e-10)


def test_a_code_of_one_dimension_or_none_that_varies_still_has_a_map():
    line = principal_map(torch.tensor([[1.0], [2.0], [4.0]]), [""] * 3)
    assert line.explained == pytest.approx((1.0, 0.0))
    assert line.points[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert principal_map(torch.ones(3, 4), [""] * 3).explained == (0.0, 0.0)


@pytest.mark.parametrize(("family", "modality"), CELLS)
def test_frames_are_what_the_model_decodes_and_the_same_each_time(family, modality):
    model, codec, layout, held_out = _cell(family, modality)
    view, again = (look_into(model, codec, layout, held_out, 3) for _ in range(2))
    for one, other in zip(view.interpolations, again.interpolations, strict=True):
        assert all(_equal(a, b) for a, b in zip(one.frames, other.frames, strict=True))
        assert len(one.frames) == len(one.positions) > 2
    if family == "gan":
        assert view.usage is None
        assert view.from_prior == ()
        return
    dimension = int(view.from_prior[0].title.split()[-1])
    z = torch.zeros(1, view.latent_size)
    z[0, dimension] = view.from_prior[0].positions[0]
    frame, alone = view.from_prior[0].frames[0], codec.decode(model.decode(z)[0].numpy())
    # In a batch of another size the sums of a convolution are rounded otherwise.
    assert frame == alone if isinstance(alone, str) else np.allclose(frame, alone, rtol=0, atol=1e-6)
    assert view.num_examples == len(view.map.labels) == 12


def test_a_conditional_model_is_looked_into_as_what_its_examples_are():
    """An example's code is that given its own label, and a path between two begins and ends as their labels do."""
    spec = cell_spec("vae", "image").as_dict()
    spec["model"]["condition"] = {"on": ["label"], "size": 4}
    spec["model"]["family"]["prior"] = "flow"
    prepared = prepared_in_memory(make_spec(spec), validation=12)
    layout = replace(prepared.layout, labels=("a", "b"))
    model = build_model(make_spec(spec), layout).eval().requires_grad_(False)
    held_out = prepared.load_split("validation")
    held_out.label[:] = torch.arange(12) % 2
    view = look_into(model, prepared.codec, layout, held_out, 3)
    walk = view.interpolations[0]
    first, last = (int(word) - 1 for word in walk.title.split() if word.isdigit())
    for row, frame in ((first, walk.frames[0]), (last, walk.frames[-1])):
        told = model.condition_of(Asked(held_out.label[row : row + 1]))
        mean, _ = model.encode(layout.to_model(held_out.x[row : row + 1]), told)
        assert _equal(frame, prepared.codec.decode(model.decode(mean, told)[0].numpy()))


def test_a_language_model_and_an_empty_split_have_no_latents():
    model, codec, layout, held_out = _cell("rnn", "text")
    assert look_into(model, codec, layout, held_out, 0) is None
    model, codec, layout, held_out = _cell("vae", "image")
    held_out.x = held_out.x[:1]
    assert look_into(model, codec, layout, held_out, 0) is None


def test_a_token_autoencoder_decodes_the_likeliest_tokens():
    model, *_ = _cell("vae", "text")
    generator = make_generator(0, "any")
    greedy = model.sample(5, generator, SamplingOptions(top_k=1))
    z = Noise(make_generator(0, "any")).normal(5, 4)
    assert torch.equal(model.decode(z), greedy)
