"""Signatures of pictures: their low frequencies, so that re-encoded and resized copies of a picture are found.

NumPy, in whichever worker reads the corpus. A signature is a 64-bit hash for candidates, the mean and the contrast of
the grey levels, a 4×4 version of both colour differences, and the coefficients of the 84 lowest frequencies.
"""

from __future__ import annotations

import functools

import numpy as np

from pipeline.data.duplicates.frequencies import HASH_BYTES, cosines, from_int16, hash_bits, lowest, unit_int16

SIDE = 10
"""Frequencies below 10 cycles in both directions; a picture needs as many pixels a side."""
CHROMA_SIDE = 4
LEVELS_BYTES = 2
CHROMA_BYTES = 2 * CHROMA_SIDE**2
MIN_CONTRAST = 2.0
"""Grey levels of standard deviation: of less, compression leaves nothing to compare."""
MAX_LEVEL_CHANGE = 16.0
MAX_CONTRAST_CHANGE = 1.4
MAX_CHROMA_CHANGE = 10.0
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_CHROMA = np.array([[-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32)


@functools.cache
def _frequencies() -> np.ndarray:
    """Cycles over the picture of each coefficient that is kept, float32 `[K]`."""
    down, across = np.divmod(_kept(), SIDE)
    return np.asarray(np.hypot(down, across), np.float32)


@functools.cache
def _kept() -> np.ndarray:
    places = lowest(SIDE, SIDE)
    return places[np.hypot(*np.divmod(places, SIDE)) < SIDE]


SIGNATURE_BYTES = HASH_BYTES + LEVELS_BYTES + CHROMA_BYTES + 2 * len(_kept())


def sign_batch(pictures: np.ndarray) -> list[bytes]:
    """The signature of each of uint8 `[N, H, W, C]`; empty of those with next to no contrast, or too few pixels."""
    count, height, width, channels = pictures.shape
    if min(height, width) < SIDE:
        return [b""] * count
    pixels = np.moveaxis(pictures, -1, 1).astype(np.float32, order="C")  # [N, C, H, W]
    grey = np.tensordot(pixels, _GREY, (1, 0)) if channels == 3 else pixels[:, 0]
    contrast = grey.std(axis=(1, 2))
    coefficients = (cosines(height, SIDE) @ grey @ cosines(width, SIDE).T).reshape(count, -1)
    parts = [
        hash_bits(coefficients[:, lowest(SIDE, SIDE)[:64]], 0.25),
        np.rint(np.stack([grey.mean(axis=(1, 2)), contrast], axis=1)).astype(np.uint8),
        _chroma(pixels),
        # Nature's pictures hold less the finer it is; without the factor only the coarsest would count.
        unit_int16(coefficients[:, _kept()] * _frequencies()),
    ]
    signatures = np.concatenate(parts, axis=1)
    return [row.tobytes() if enough else b"" for row, enough in zip(signatures, contrast >= MIN_CONTRAST, strict=True)]


def _chroma(pixels: np.ndarray) -> np.ndarray:
    """Blue and red differences (BT.601) of the picture's 16 parts, around 128, uint8 `[N, CHROMA_BYTES]`, from
    `[N, C, H, W]`."""
    count, channels, height, width = pixels.shape
    if channels == 1:
        return np.full((count, CHROMA_BYTES), 128, np.uint8)
    means = _part_means(height) @ pixels @ _part_means(width).T
    chroma = _CHROMA @ means.reshape(count, channels, -1)
    return np.rint(np.clip(chroma + 128, 0, 255)).astype(np.uint8).reshape(count, -1)


@functools.cache
def _part_means(extent: int) -> np.ndarray:
    """Weights that average `extent` places into `CHROMA_SIDE` equal parts, float32 `[CHROMA_SIDE, extent]`."""
    edges = np.arange(CHROMA_SIDE + 1) * extent / CHROMA_SIDE
    places = np.arange(extent)
    overlap = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return np.asarray(np.clip(overlap, 0, None) * (CHROMA_SIDE / extent), np.float32)


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The correlation of the low frequencies of each pair, float32 `[P]`, from uint8 `[P, SIGNATURE_BYTES]` each.

    0 where mean, contrast or colours differ by more than compression changes them. Resizing weakens high frequencies:
    the correlation is that after the best weakening (or strengthening) in proportion to the squared frequency, of
    either picture to the other, and the less of the two.
    """
    levels = slice(HASH_BYTES, HASH_BYTES + LEVELS_BYTES)
    chroma = slice(levels.stop, levels.stop + CHROMA_BYTES)
    (mean, contrast), (other_mean, other_contrast) = (side[:, levels].astype(np.float32).T for side in (first, second))
    changed = np.abs(mean - other_mean) > MAX_LEVEL_CHANGE
    changed |= np.maximum(contrast, other_contrast) > MAX_CONTRAST_CHANGE * np.minimum(contrast, other_contrast)
    difference = first[:, chroma].astype(np.float32) - second[:, chroma]
    changed |= np.sqrt(np.mean(difference**2, axis=1)) > MAX_CHROMA_CHANGE
    one, other = from_int16(first[:, chroma.stop :]), from_int16(second[:, chroma.stop :])
    fit = np.minimum(_fit(one, other), _fit(other, one))
    return np.where(changed, np.float32(0), fit)


def _fit(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How much of `target` `[P, K]`, of length 1, is a combination of `source` and of `source` times the squared
    frequency: the multiple correlation, float32 `[P]`."""
    weakened = source * (_frequencies() / SIDE) ** 2

    def products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.einsum("pk,pk->p", left, right)

    own, cross, others = products(source, source), products(source, weakened), products(weakened, weakened)
    plain, weak = products(source, target), products(weakened, target)
    determinant = np.maximum(own * others - cross**2, 1e-9)
    explained = (others * plain**2 - 2 * cross * plain * weak + own * weak**2) / determinant
    return np.asarray(np.where(plain > 0, np.sqrt(np.clip(explained, 0, 1)), 0), np.float32)
