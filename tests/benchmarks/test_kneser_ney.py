"""The baseline against its own definition: sums to one, and a count by hand with dictionaries."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest

from tests.benchmarks.kneser_ney import KneserNey

SYMBOLS, END, ORDER = 4, 3, 3
DOCUMENTS = [np.array(list(text), dtype=int) for text in ("0101220", "012", "00", "0120121", "2")]


def by_hand(history: tuple[int, ...], target: int) -> float:
    """p(target | history), by Chen and Goodman's recursion over dictionaries."""
    counts: list[dict[tuple[int, ...], int]] = [defaultdict(int) for _ in range(ORDER + 1)]
    for document in DOCUMENTS:
        padded = [END] * (ORDER - 1) + document.tolist() + [END]
        for place in range(ORDER - 1, len(padded)):
            counts[ORDER][tuple(padded[place - ORDER + 1 : place + 1])] += 1
    for length in range(ORDER - 1, 0, -1):
        for gram, count in counts[length + 1].items():
            shorter = gram[1:]
            counts[length][shorter] += count if length > 1 and shorter[0] == END else 1
    result = 1 / SYMBOLS
    for length in range(1, ORDER + 1):
        context = history[len(history) - length + 1 :] if length > 1 else ()
        values = list(counts[length].values())
        once, twice = values.count(1), values.count(2)
        discount = once / (once + 2 * twice) if once else 0.5
        following = {gram[-1]: count for gram, count in counts[length].items() if gram[:-1] == context}
        if following:
            total = sum(following.values())
            result = (max(following.get(target, 0) - discount, 0) + discount * len(following) * result) / total
    return result


@pytest.fixture
def model() -> KneserNey:
    return KneserNey(DOCUMENTS, SYMBOLS, END, ORDER)


@pytest.mark.parametrize("history", itertools.product(range(SYMBOLS), repeat=ORDER - 1))
def test_kneser_ney_sums_to_one_and_agrees_with_a_count_by_hand(model: KneserNey, history: tuple[int, ...]) -> None:
    found = model.probabilities(np.array([history] * SYMBOLS), np.arange(SYMBOLS))
    assert found.sum() == pytest.approx(1)
    assert found.tolist() == pytest.approx([by_hand(history, target) for target in range(SYMBOLS)])


def test_kneser_ney_charges_every_token_and_the_end(model: KneserNey) -> None:
    nats = model.nats([np.array([0, 1])])
    expected = [by_hand((END, END), 0), by_hand((END, 0), 1), by_hand((0, 1), END)]
    assert nats.tolist() == pytest.approx((-np.log(expected)).tolist())
