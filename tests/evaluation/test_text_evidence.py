"""Planted failures of models of text are named, each by its own name, and held-out text passes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pipeline.evaluation.copied_spans import find_copies
from pipeline.evaluation.evidence import GRAM
from pipeline.evaluation.text_evidence import text_evidence
from pipeline.evaluation.text_scores import DEFINITIONS_OF_TEXTS, HELD_OUT, newness, wilson
from pipeline.evaluation.verdict import judge
from tests.evaluation.texts import captions, chained, edited, poems, sentences

COUNT = 150


def made() -> tuple[list[str], list[str]]:
    return sentences(2000, 0), sentences(500, 1)


def real_captions() -> tuple[list[str], list[str]]:
    both = sorted(set(captions("test")))  # the two files of captions are of different pictures
    random.Random(1).shuffle(both)
    return both[:4000], both[4000:]


def real_poems() -> tuple[list[str], list[str]]:
    every = poems()
    return every[:4000], every[4000:5000]


CORPORA: dict[str, tuple[Callable[[], tuple[list[str], list[str]]], int]] = {
    "made": (made, 4),
    "captions": (real_captions, 4),
    "poems": (real_poems, 2),
}
"""Each corpus: training and held-out texts, and the order of a chain that blurs it without copying it."""


@pytest.fixture(scope="module", params=list(CORPORA))
def findings(request):
    """What is found wrong with some texts, given a corpus; and the corpus."""
    corpus, order = CORPORA[request.param]
    training, held_out = corpus()
    references, others = held_out[:COUNT], held_out[COUNT : 2 * COUNT]

    def found(generated: list[str]) -> set[str]:
        return set(judge(text_evidence(generated, references, others, [training])).findings)

    return found, training, held_out, order


def test_a_copier_is_named_also_when_it_edits(findings):
    found, training, *_ = findings
    rng = random.Random(2)
    assert found(rng.sample(training, COUNT)) == {"copies"}
    assert "copies" in found([edited(text, 0.02, rng) for text in rng.sample(training, COUNT)])


def test_ten_outputs_are_a_collapse_even_when_they_are_new(findings):
    found, _, held_out, _ = findings
    few = held_out[-10:]
    assert found([few[place % 10] for place in range(COUNT)]) == {"collapsed"}


def test_only_the_commonest_turns_are_a_blur(findings):
    found, training, _, order = findings
    assert "blurred" in found(chained(training[:2000], COUNT, order, 0.2, random.Random(3)))


def test_random_characters_are_noise(findings):
    found, _, held_out, _ = findings
    rng = random.Random(4)
    alphabet = sorted(set("".join(held_out[:COUNT])))
    assert found(["".join(rng.choices(alphabet, k=len(text))) for text in held_out[:COUNT]]) == {"noise"}


def test_held_out_text_passes(findings):
    found, _, held_out, _ = findings
    assert found(held_out[2 * COUNT : 3 * COUNT]) == set()


def test_every_statistic_has_a_value_for_held_out_text_and_an_interval_around_both():
    training, held_out = made()
    evidence = text_evidence(held_out[300:400], held_out[:100], held_out[100:200], [training])
    assert evidence.pop(GRAM).value >= 4
    assert {*evidence, *(key + HELD_OUT for key in evidence)} == set(DEFINITIONS_OF_TEXTS)
    for key, found in evidence.items():
        if key == "longest_copied_span":
            assert found.interval is None
            continue
        for value, interval in ((found.value, found.interval), (found.held_out, found.held_out_interval)):
            assert interval is not None, key
            assert interval[0] <= value <= interval[1], key


def test_what_is_said_again_is_no_further_evidence():
    training, held_out = made()
    texts = [training[0], held_out[0]]
    repeated = [text for text in texts for _ in range(50)]
    once, often = (newness(some, find_copies(some, [training], 10, True)) for some in (texts, repeated))
    assert once == often


def test_wilsons_interval_is_that_of_the_published_example():
    # Newcombe (1998), table I: 81 of 263.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
