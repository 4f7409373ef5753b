"""Candidates: pairs of signatures that agree in a band, so that not every pair need be compared.

Locality-sensitive hashing (Indyk and Motwani 1998). NumPy; one band at a time, so that the memory is a few arrays of
one number a row and bands may go to different workers.
"""

from __future__ import annotations

import numpy as np

SMALL_BUCKET = 32
NEIGHBOURS = 8


def pairs_in_buckets(keys: np.ndarray) -> np.ndarray:
    """Pairs of rows i < j in the same bucket, int64 `[P, 2]`, each once, from uint64 `[N, 2]`: the bucket's key, and
    what the rows of one are ordered by.

    Of a bucket of up to `SMALL_BUCKET` rows all pairs; of a larger one each row with its next `NEIGHBOURS` in the
    order, where the most alike are close, and with the bucket's first row: at most 15.5 pairs a row.
    """
    order = np.lexsort((np.arange(len(keys)), keys[:, 1], keys[:, 0]))
    ordered = keys[order, 0]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(keys)])
    sizes = np.diff(starts, append=len(keys))
    size, start = np.repeat(sizes, sizes), np.repeat(starts, sizes)
    place = np.arange(len(keys))
    found = []
    for distance in range(1, min(SMALL_BUCKET, len(keys))):
        within = (place - start + distance < size) & ((size <= SMALL_BUCKET) | (distance <= NEIGHBOURS))
        first = np.flatnonzero(within)
        if len(first) == 0:
            break
        found.append((first, first + distance))
    far = np.flatnonzero((size > SMALL_BUCKET) & (place - start > NEIGHBOURS))
    found.append((start[far], far))
    places = np.concatenate([np.stack(each, axis=1) for each in found])
    return np.sort(order[places], axis=1)
