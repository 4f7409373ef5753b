"""What the fingerprints of pictures and of sounds share: low frequencies of a map, and a 64-bit hash of their signs.

Low frequencies hardly change when a picture is resized or compressed, and two different things rarely agree in all of
them: measured precisely, they tell more than many pixels measured roughly.
"""

from __future__ import annotations

import functools

import numpy as np

HASH_BYTES = 8
BANDS = 32
BITS_PER_BAND = 20
"""Of hashes that differ in 5 bits, 7 in 1,000 share no band; of two random ones, 1 in 2^15 shares one."""


@functools.cache
def cosines(extent: int, count: int) -> np.ndarray:
    """The first `count` cosines of the discrete cosine transform (type 2) over `extent` places, float32
    `[count, extent]`, scaled so that a map's coefficients do not depend on its size."""
    places = (2 * np.arange(extent) + 1) / (2 * extent)
    return np.asarray(np.cos(np.pi * np.arange(count)[:, None] * places) * (2 / extent), np.float32)


@functools.cache
def lowest(rows: int, columns: int) -> np.ndarray:
    """The places in a raveled `[rows, columns]` of all coefficients but the constant, the lowest frequencies first."""
    down, across = np.divmod(np.arange(rows * columns), columns)
    return np.lexsort((down, down + across))[1:]


def hash_bits(coefficients: np.ndarray, threshold: float) -> np.ndarray:
    """Which of 64 coefficients `[N, 64]` are above `threshold`, uint8 `[N, HASH_BYTES]` (pHash, Zauner 2010). The
    threshold keeps coefficients that are zero but for noise, as of symmetric pictures, on one side."""
    return np.packbits(coefficients > threshold, axis=1)


def unit_int16(coefficients: np.ndarray) -> np.ndarray:
    """Floats `[N, K]` brought to length 1, int16 of scale 32,767 as uint8 `[N, 2 K]`."""
    lengths = np.linalg.norm(coefficients, axis=1, keepdims=True)
    scaled = np.rint(coefficients * (32767 / np.maximum(lengths, 1e-20)))
    return np.ascontiguousarray(scaled, "<i2").view(np.uint8)


def from_int16(part: np.ndarray) -> np.ndarray:
    """What `unit_int16` stored, float32 `[N, K]` of length 1."""
    values = np.ascontiguousarray(part).view("<i2").astype(np.float32)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-20), np.float32)


def band_keys(signatures: np.ndarray, band: int) -> np.ndarray:
    """uint8 `[N, any]` that begin with their hash → uint64 `[N, 2]`: the bits that `band` samples (Indyk and Motwani
    1998), and the whole hash to order those that agree in them."""
    hashes = np.ascontiguousarray(signatures[:, :HASH_BYTES]).view("<u8").ravel()
    return np.stack([hashes & _band_masks()[band], hashes], axis=1)


@functools.cache
def _band_masks() -> np.ndarray:
    """For each band a fixed choice of `BITS_PER_BAND` of 64 bits, uint64 `[BANDS]`."""
    # Raw draws, which NumPy promises to keep; its methods' streams may change.
    order = np.random.PCG64(2010).random_raw(BANDS * 64).reshape(BANDS, 64).argsort(axis=1)
    chosen = order[:, :BITS_PER_BAND].astype(np.uint64)
    return np.asarray(np.bitwise_or.reduce(np.uint64(1) << chosen, axis=1), np.uint64)
