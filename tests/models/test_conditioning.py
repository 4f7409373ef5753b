"""What samples are asked for, as vectors: labels, prompts, what is hidden, and what is drawn where nothing is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.data.layout import Layout
from pipeline.data.prompts import encode_prompts
from pipeline.models.base import Noise, SamplingOptions, make_generator
from pipeline.models.conditioning import Asked, Conditioner, hidden_by_row, make_conditioner
from pipeline.spec import ConditionSpec

LAYOUT = Layout(
    "image",
    "signal",
    (1, 8, 8),
    "uint8",
    "bernoulli",
    labels=("cat", "dog", "owl"),
    label_counts=(2, 1, 1),
    prompts=("a cat", "дог"),
    prompt_counts=(3, 1),
    prompt_length=16,
)


def prompts(*texts: str) -> torch.Tensor:
    return torch.from_numpy(encode_prompts(texts, LAYOUT.prompt_length).astype("int64"))


def conditioner(*on: str, dropout: float = 0.0) -> Conditioner:
    torch.manual_seed(0)
    return Conditioner(LAYOUT, ConditionSpec(on=on, size=8, dropout=dropout))  # type: ignore[arg-type]


def test_nothing_asked_needs_no_conditioner() -> None:
    assert make_conditioner(LAYOUT, ConditionSpec()) is None


def test_a_vector_depends_on_the_label_and_on_the_prompt_alone() -> None:
    both = conditioner("label", "prompt").eval()
    first = both(Asked(torch.tensor([0, 1]), prompts("a cat", "a cat")))
    second = both(Asked(torch.tensor([1, 1, 1]), prompts("owl", "a cat", "дог")))
    torch.testing.assert_close(first[1], second[1])
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(second[0], second[1])


def test_what_a_prompt_is_padded_with_does_not_matter() -> None:
    model = conditioner("prompt").eval()
    long = prompts("a cat")
    torch.testing.assert_close(model(Asked(torch.tensor([-1]), long)), model(Asked(torch.tensor([-1]), long[:, :8])))


@pytest.mark.parametrize("label", [-1, 3, 99])
def test_labels_that_are_not_known_are_one(label: int) -> None:
    model = conditioner("label").eval()
    torch.testing.assert_close(model(Asked(torch.tensor([label]))), model.label.weight[-1:])


def test_hidden_conditions_are_as_many_as_the_dropout_says_and_label_and_prompt_go_together() -> None:
    model = conditioner("label", "prompt", dropout=0.3).train()
    asked = Asked(torch.zeros(4000, dtype=torch.int64), prompts("a cat").expand(4000, -1))
    vectors = model(asked, Noise(make_generator(0, "noise")))
    kinds = vectors.detach().unique(dim=0)
    assert len(kinds) == 2
    nothing = (model.label.weight[-1] + model.no_prompt).detach()
    share = float((vectors - nothing).abs().sum(1).lt(1e-6).double().mean())
    assert share == pytest.approx(0.3, abs=0.03)


def test_what_is_not_asked_for_is_drawn_as_often_as_the_corpus_has_it() -> None:
    asked = conditioner("label", "prompt").asked(8000, Noise(make_generator(0, "sample")))
    shares = torch.bincount(asked.label, minlength=3) / 8000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.25]), atol=0.02, rtol=0)
    assert asked.prompt is not None
    cats = (asked.prompt == prompts("a cat")).all(1).double().mean()
    assert float(cats) == pytest.approx(0.75, abs=0.02)


def test_what_is_asked_for_is_given_to_all_or_to_each() -> None:
    model, noise = conditioner("label", "prompt"), Noise(make_generator(0, "sample"))
    tokens = tuple(prompts("owl")[0].tolist())
    asked = model.asked(3, noise, SamplingOptions(asked_label=2, asked_prompt=tokens))
    assert asked.label.tolist() == [2, 2, 2]
    assert asked.prompt is not None
    assert asked.prompt.tolist() == [list(tokens)] * 3
    assert model.asked(3, noise, SamplingOptions(asked_label=(0, 1, 2))).label.tolist() == [0, 1, 2]


def test_corpora_that_were_not_counted_are_drawn_from_evenly() -> None:
    layout = replace(LAYOUT, label_counts=())
    model = Conditioner(layout, ConditionSpec(on=("label",), size=8))
    shares = torch.bincount(model.asked(6000, Noise(make_generator(0, "sample"))).label) / 6000
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.02, rtol=0)


def test_two_workers_are_asked_for_what_one_is() -> None:
    model = conditioner("label", "prompt")
    whole = model.asked(6, Noise(make_generator(0, "noise")))
    parts = [model.asked(3, Noise(make_generator(0, "noise"), rank, 2)) for rank in range(2)]
    for rank, part in enumerate(parts):
        assert part.label.equal(whole.label[rank::2])
        assert part.prompt is not None and whole.prompt is not None
        assert part.prompt.equal(whole.prompt[rank::2])


def test_an_example_in_parts_is_hidden_in_all_of_them_or_in_none() -> None:
    rows = torch.arange(20_000)
    hidden = hidden_by_row(rows, 0.1)
    assert float(hidden.double().mean()) == pytest.approx(0.1, abs=0.005)
    assert hidden_by_row(rows[7:9], 0.1).equal(hidden[7:9])
    assert not hidden_by_row(rows, 0.0).any()
