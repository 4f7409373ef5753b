"""Duplicates: signatures of what the corpus holds, and from them clusters of records that are nearly the same.

`sign` runs in the workers that read; the signatures are stored, and compared in the next preparation again. Then the
`near_pairs` of each band, in any workers, and `cluster`.

A cluster is a chain: its ends may be less alike than its links. At the default similarities the longest chains of real
corpora were short (4 of 70,000 MNIST digits; of 57,603 Tang poems 12 couplets with the same long citation); at lower
ones they grow quickly where records are alike by nature (MNIST at 0.995: 33, most of them straight ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.data.duplicates import frequencies, picture, sound, text
from pipeline.data.duplicates.candidates import pairs_in_buckets
from pipeline.data.duplicates.clusters import cluster, exact_groups
from pipeline.data.layout import Modality

__all__ = [
    "DEFAULT_SIMILARITY",
    "SIGNATURE_BYTES",
    "band_keys",
    "candidate_pairs",
    "cluster",
    "exact_groups",
    "near_pairs",
    "num_bands",
    "pairs_in_buckets",
    "sign",
    "sign_batch",
    "similar",
    "stack",
]

SIGNATURE_BYTES: dict[Modality, int] = {
    "text": text.SIGNATURE_BYTES,
    "image": picture.SIGNATURE_BYTES,
    "audio": sound.SIGNATURE_BYTES,
}
_SIMILARITY = {"text": text.similarity, "image": picture.similarity, "audio": sound.similarity}
DEFAULT_SIMILARITY: dict[Modality, float] = {"text": 0.4, "image": 0.998, "audio": 0.997}
"""Measured by `tests.benchmarks.duplicates`. For photographs 0.97 also finds slightly shifted and retouched copies (all
of 160 pairs of CIFAR-10 looked at were the same photograph); handwritten digits are as alike as that by nature."""
PAIRS_AT_ONCE = 65536


def sign(raw: Any, modality: Modality, rate_hz: int | None = None) -> bytes:
    """The signature of what a codec takes as raw: a string, a picture uint8 `[H, W, C]`, or sound float32 `[T]` at
    `rate_hz`. `SIGNATURE_BYTES` long, or empty when there is too little to compare."""
    return sign_batch([raw], modality, rate_hz)[0]


def sign_batch(raws: Sequence[Any], modality: Modality, rate_hz: int | None = None) -> list[bytes]:
    """The signature of each of `raws`; texts, and pictures of one size, many at once, which is faster."""
    if modality == "text":
        return text.sign_batch(raws)
    if modality == "audio":
        assert rate_hz is not None
        return [sound.sign(raw, rate_hz) for raw in raws]
    if len({raw.shape for raw in raws}) > 1:
        return [picture.sign_batch(raw[None])[0] for raw in raws]
    return picture.sign_batch(np.stack(raws)) if len(raws) else []


def stack(signatures: Sequence[bytes], modality: Modality) -> tuple[np.ndarray, np.ndarray]:
    """The signatures that are not empty, uint8 `[M, SIGNATURE_BYTES]`, and their rows, int64 `[M]`."""
    rows = np.flatnonzero([len(signature) > 0 for signature in signatures])
    joined = np.frombuffer(b"".join(signatures), np.uint8)
    return joined.reshape(len(rows), SIGNATURE_BYTES[modality]), rows


def num_bands(modality: Modality) -> int:
    """How many bands `candidate_pairs` has."""
    return text.BANDS if modality == "text" else frequencies.BANDS


def band_keys(signatures: np.ndarray, band: int, modality: Modality) -> np.ndarray:
    """For uint8 `[N, SIGNATURE_BYTES]` the bucket of each in `band` and what those of one bucket are ordered by, uint64
    `[N, 2]`."""
    return (text.band_keys if modality == "text" else frequencies.band_keys)(signatures, band)


def candidate_pairs(signatures: np.ndarray, band: int, modality: Modality) -> np.ndarray:
    """Pairs of rows i < j, int64 `[P, 2]`, of uint8 `[N, SIGNATURE_BYTES]` that agree in `band`: in time and number
    linear in N, see `candidates`."""
    return pairs_in_buckets(band_keys(signatures, band, modality))


def similar(pairs: np.ndarray, signatures: np.ndarray, modality: Modality) -> np.ndarray:
    """The similarity in [0, 1] of each of the pairs int64 `[P, 2]`, float32 `[P]`: of shingles for text, of low
    frequencies for pictures and sound; see there."""
    found = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs[start : start + PAIRS_AT_ONCE]
        found[start : start + PAIRS_AT_ONCE] = _SIMILARITY[modality](signatures[part[:, 0]], signatures[part[:, 1]])
    return found


def near_pairs(signatures: np.ndarray, band: int, modality: Modality, similarity: float | None = None) -> np.ndarray:
    """The candidate pairs of `band` that are at least `similarity` alike, by default the modality's, int64 `[P, 2]`."""
    pairs = candidate_pairs(signatures, band, modality)
    least = DEFAULT_SIMILARITY[modality] if similarity is None else similarity
    return pairs[similar(pairs, signatures, modality) >= least]
