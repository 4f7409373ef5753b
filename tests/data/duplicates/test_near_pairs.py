"""Candidates and clusters: against every pair compared, and linear in the number of rows whatever the corpus."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.duplicates import (
    SIGNATURE_BYTES,
    candidate_pairs,
    cluster,
    exact_groups,
    near_pairs,
    num_bands,
    stack,
)
from pipeline.data.duplicates.candidates import NEIGHBOURS, SMALL_BUCKET, pairs_in_buckets
from pipeline.data.duplicates.frequencies import BANDS, HASH_BYTES, band_keys
from pipeline.data.layout import Modality

MODALITIES: tuple[Modality, ...] = ("text", "image", "audio")


def as_set(pairs: np.ndarray) -> set[tuple[int, int]]:
    return {(int(one), int(other)) for one, other in pairs}


def keys_of(buckets: list[int]) -> np.ndarray:
    order = np.random.default_rng(0).integers(0, 9, len(buckets))
    return np.stack([np.array(buckets, np.uint64), order.astype(np.uint64)], axis=1)


@given(st.lists(st.integers(0, 4), max_size=SMALL_BUCKET))
def test_of_small_buckets_all_pairs_are_candidates_once(buckets: list[int]) -> None:
    pairs = pairs_in_buckets(keys_of(buckets))
    rows = itertools.combinations(range(len(buckets)), 2)
    assert as_set(pairs) == {(i, j) for i, j in rows if buckets[i] == buckets[j]}
    assert len(as_set(pairs)) == len(pairs)


@given(st.integers(SMALL_BUCKET + 1, 500), st.integers(0, 20))
def test_a_large_bucket_is_connected_by_few_pairs(size: int, others: int) -> None:
    pairs = pairs_in_buckets(keys_of([7] * size + [8] * others))
    assert len(as_set(pairs)) == len(pairs) <= (NEIGHBOURS + 1) * size + (SMALL_BUCKET - 1) / 2 * others
    assert len(set(cluster(size + others, pairs)[:size].tolist())) == 1


@pytest.mark.parametrize("modality", MODALITIES)
def test_equal_signatures_are_near_in_every_band(modality: Modality) -> None:
    signatures = np.random.default_rng(1).integers(0, 200, (6, SIGNATURE_BYTES[modality]), dtype=np.uint8)
    signatures[:, 8:12] = np.frombuffer(np.float32(1).tobytes(), np.uint8)  # the seconds of a sound
    signatures[4] = signatures[1]
    for band in range(num_bands(modality)):
        assert as_set(candidate_pairs(signatures, band, modality)) == {(1, 4)}
        assert as_set(near_pairs(signatures, band, modality)) == {(1, 4)}
        assert len(near_pairs(signatures[:0], band, modality)) == 0


def test_hashes_that_differ_in_five_bits_share_a_band() -> None:
    random = np.random.default_rng(2)
    bits = random.integers(0, 2, (1000, 64), dtype=np.uint8)
    flipped = bits.copy()
    for row in flipped:
        row[random.choice(64, 5, replace=False)] ^= 1
    signatures = np.concatenate([np.packbits(bits, axis=1), np.packbits(flipped, axis=1)])
    assert signatures.shape[1] == HASH_BYTES
    met = np.zeros(1000, bool)
    for band in range(BANDS):
        buckets = band_keys(signatures, band)[:, 0]
        met |= buckets[:1000] == buckets[1000:]
    assert met.mean() > 0.985


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=40))
def test_clusters_are_what_pairs_connect_under_their_smallest_row(count: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(one % count, other % count) for one, other in pairs]
    expected = list(range(count))
    for _ in range(count):
        for one, other in pairs:
            expected[one] = expected[other] = min(expected[one], expected[other])
    assert cluster(count, np.array(pairs, np.int64).reshape(-1, 2)).tolist() == expected


@given(st.lists(st.integers(0, 2**64 - 1).map(lambda value: value % 5 * 2**62 % 2**64), max_size=30))
def test_exact_groups_are_the_first_row_with_the_same_hash(ids: list[int]) -> None:
    assert exact_groups(np.array(ids, np.uint64)).tolist() == [ids.index(value) for value in ids]


def test_rows_without_a_signature_stay_out_of_the_stack() -> None:
    full = bytes(SIGNATURE_BYTES["text"])
    signatures, rows = stack([b"", full, b"", full], "text")
    assert rows.tolist() == [1, 3] and signatures.shape == (2, SIGNATURE_BYTES["text"])
    assert stack([b"", b""], "text")[0].shape == (0, SIGNATURE_BYTES["text"])
