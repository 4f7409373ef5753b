"""Planted failures are named, each and no other, and unseen examples pass, in all three modalities."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from pipeline.data.layout import Modality
from tests.conftest import MODALITIES, SHARED_DATA
from tests.evaluation.planted_models import KINDS, REAL, made_corpus, plant, real_corpus
from tests.evaluation.planted_verdicts import Suite


@cache
def made_suite(modality: Modality) -> Suite:
    return Suite(made_corpus(modality))


@cache
def real_suite(name: str) -> Suite:
    return Suite(real_corpus(name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_each_planted_failure_is_named_and_unseen_examples_pass(modality, kind):
    scored = made_suite(modality).score(kind)
    assert scored.right(kind), scored.verdict.in_words()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_so_with_other_seeds(modality, kind, seed):
    scored = made_suite(modality).score(kind, seed)
    assert scored.right(kind), scored.verdict.in_words()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REAL)
def test_so_on_real_corpora(name, kind, seed):
    if not (SHARED_DATA / REAL[name]).exists():
        pytest.skip(f"{SHARED_DATA / REAL[name]} is not there: the real corpora lie beside a developer's checkout")
    scored = real_suite(name).score(kind, seed)
    assert scored.right(kind), scored.verdict.in_words()


def test_distances_between_distributions_miss_the_copier_of_pictures():
    """What the suite is for: of precision, recall and coverage the copier has what real digits have, and its Fréchet
    distance is nothing beside that of a collapse."""
    suite = made_suite("image")
    evidence = suite.score("copier").evidence
    for key in ("precision", "recall", "coverage"):
        assert evidence[key].value > 0.9 * evidence[key].held_out
    assert evidence["frechet"].value < 0.2 * suite.score("collapsed").evidence["frechet"].value
    assert evidence["singled_out"].value > 0.9


@pytest.mark.parametrize("modality", MODALITIES)
def test_planted_models_sample_as_models_do(modality):
    corpus = made_corpus(modality)
    for kind in KINDS:
        first, again = (plant(corpus, kind).sample(5, torch.Generator().manual_seed(1), None) for _ in range(2))
        assert torch.equal(first, again)
        assert first.shape == (5, *corpus.layout.shape)
