"""Signatures of sounds: how the spectrum goes over time, so that re-sampled and re-encoded copies are found.

NumPy, in whichever worker reads the corpus; no torch, which takes seconds to import. A signature is a 64-bit hash for
candidates, the duration, and the low frequencies of the log-mel spectrogram.
"""

from __future__ import annotations

import functools

import numpy as np

from pipeline.data.duplicates.frequencies import HASH_BYTES, cosines, from_int16, hash_bits, lowest, unit_int16

WINDOW_SECONDS = 0.032
HOP_SECONDS = 0.008
MELS = 32
TIMES = 32
LOWEST_HZ = 80.0
HIGHEST_OF_RATE = 0.35
"""Of the sample rate: what is above is lost when the sound was kept at three quarters of it."""
EDGE_ENERGY = 0.01
"""Of the energy is before the beginning and after the end that are compared: unlike a level in decibels, this moves
little with noise, and not at all with silence."""
FLOOR = 1e-3
"""Of the loudest band and time, added before the logarithm: what is 30 dB below it counts little."""
KEPT_TIMES, KEPT_MELS = 12, 16
DURATION_BYTES = 4
SIGNATURE_BYTES = HASH_BYTES + DURATION_BYTES + 2 * (KEPT_TIMES * KEPT_MELS - 1)
MIN_SECONDS = 0.05
MIN_POWER = 1e-9
MAX_DURATION_CHANGE = 1.08
FRAMES_AT_ONCE = 4096


def sign(samples: np.ndarray, rate_hz: int) -> bytes:
    """The signature of float32 `[T]` at `rate_hz`; empty of silence (-90 dBFS) and of what is shorter than 50 ms."""
    samples = np.asarray(samples, np.float32)
    if len(samples) < MIN_SECONDS * rate_hz or float(np.mean(samples**2)) < MIN_POWER:
        return b""
    energies = _mel_energies(samples, rate_hz)
    total = np.concatenate(([0], np.cumsum(energies.sum(axis=1))))
    begin, end = np.interp((EDGE_ENERGY * total[-1], (1 - EDGE_ENERGY) * total[-1]), total, np.arange(len(total)))
    end = max(end, begin + 1)
    log_mel = np.log(_in_times(energies, begin, end) + 1e-20)
    log_mel = np.logaddexp(log_mel, log_mel.max() + np.log(FLOOR)).astype(np.float32)
    coefficients = cosines(TIMES, KEPT_TIMES) @ log_mel @ cosines(MELS, KEPT_MELS).T
    kept = coefficients.reshape(1, -1)[:, lowest(KEPT_TIMES, KEPT_MELS)]
    duration = np.array([(end - begin) * HOP_SECONDS], "<f4")
    return hash_bits(kept[:, :64], 0.02).tobytes() + duration.tobytes() + unit_int16(kept).tobytes()


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The correlation of the small spectrograms of each pair, float32 `[P]`, from uint8 `[P, SIGNATURE_BYTES]` each; 0
    where the durations differ by more than 8%."""
    start = HASH_BYTES + DURATION_BYTES
    lasts = [np.ascontiguousarray(side[:, HASH_BYTES:start]).view("<f4").ravel() for side in (first, second)]
    longer, shorter = np.maximum(*lasts), np.minimum(*lasts)
    fit = np.einsum("pk,pk->p", from_int16(first[:, start:]), from_int16(second[:, start:]))
    return np.asarray(np.where(longer > MAX_DURATION_CHANGE * shorter, 0, fit), np.float32)


def _mel_energies(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Power in mel bands, float64 `[frames, MELS]`, with silence before and after."""
    size, hop = round(WINDOW_SECONDS * rate_hz), max(1, round(HOP_SECONDS * rate_hz))
    filters = _mel_filters(size, rate_hz)
    window = np.hanning(size).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, size), size)[::hop]
    parts = []
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        spectrum = np.fft.rfft(frames[start : start + FRAMES_AT_ONCE] * window)
        parts.append((spectrum.real**2 + spectrum.imag**2) @ filters)
    return np.concatenate(parts).astype(np.float64)


def _in_times(energies: np.ndarray, begin: float, end: float) -> np.ndarray:
    """The mean of `energies` `[frames, MELS]` in `TIMES` equal parts of [begin, end] frames, `[TIMES, MELS]`."""
    edges = np.linspace(begin, end, TIMES + 1)
    sums = np.concatenate((np.zeros((1, energies.shape[1])), np.cumsum(energies, axis=0)))
    below = np.minimum(edges.astype(np.int64), len(energies) - 1)
    at_edges = sums[below] + (edges - below)[:, None] * energies[below]
    return np.asarray(np.diff(at_edges, axis=0) * (TIMES / (end - begin)))


@functools.cache
def _mel_filters(size: int, rate_hz: int) -> np.ndarray:
    """Triangular filters, equally wide on the mel scale and each summing to 1, float32 `[size // 2 + 1, MELS]`."""
    bins = np.fft.rfftfreq(size, 1 / rate_hz)
    limits = 2595 * np.log10(1 + np.array([LOWEST_HZ, HIGHEST_OF_RATE * rate_hz]) / 700)
    edges = 700 * (10 ** (np.linspace(limits[0], limits[1], MELS + 2) / 2595) - 1)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.clip(np.minimum(rising, falling), 0, None)
    nearest = np.abs(bins[:, None] - edges[1:-1]).argmin(axis=0)
    narrow = filters.sum(axis=0) == 0  # between two bins: take the nearest
    filters[nearest[narrow], narrow] = 1
    return np.asarray(filters / filters.sum(axis=0), np.float32)
