"""Shaping sound: silence trimmed off, loudness brought to a level, clips cut into segments.

Pure functions on mono samples, in Ray Data's workers.
"""

from __future__ import annotations

import numpy as np

from pipeline.errors import CodecError

LEVEL_WINDOW_SECONDS = 0.01
LOUDNESS_BLOCK_SECONDS = 0.4
LOWEST_LOUDNESS_RATE_HZ = 4000
"""The K-weighting's shelf at 1.7 kHz has to lie below half the rate."""


def trim_silence(samples: np.ndarray, rate_hz: int, threshold_dbfs: float) -> np.ndarray:
    """`samples` `[T]` from the first to the last window of 10 ms whose root mean square is `threshold_dbfs` or more (0
    is that of a full-scale square wave, a sine's is 3 dB lower); empty when there is none."""
    window = max(1, round(LEVEL_WINDOW_SECONDS * rate_hz))
    starts = np.arange(0, len(samples), window)
    if not len(starts):
        return samples
    energy = np.add.reduceat(np.square(samples, dtype=np.float64), starts)
    counts = np.diff(starts, append=len(samples))
    loud = np.flatnonzero(energy / counts >= 10 ** (threshold_dbfs / 10))
    if not len(loud):
        return samples[:0]
    return samples[starts[loud[0]] : starts[loud[-1]] + window]


def check_loudness_rate(rate_hz: int) -> None:
    """Raises: CodecError where `rate_hz` is too low for the standard's filters."""
    if rate_hz < LOWEST_LOUDNESS_RATE_HZ:
        raise CodecError(
            f"data.codec.loudness_lufs: loudness is measured at {LOWEST_LOUDNESS_RATE_HZ} Hz and more, not at "
            f"{rate_hz} Hz; raise data.codec.sample_rate_hz, or leave loudness_lufs out"
        )


def loudness_lufs(samples: np.ndarray, rate_hz: int) -> float:
    """The integrated loudness of mono `samples` `[T]` in LUFS (ITU-R BS.1770-4, gated); -inf for silence.

    A clip shorter than the standard's block of 0.4 s is one block of its own length.
    """
    # Imported here: scipy's filters cost a fresh worker half a second.
    from pyloudnorm import Meter

    block = int(np.ceil(LOUDNESS_BLOCK_SECONDS * rate_hz))
    padded = np.pad(samples.astype(np.float64), (0, max(0, block - len(samples))))
    # "DeMan" are the standard's own filters, at any rate; the library's default only comes near them.
    with np.errstate(divide="ignore", invalid="ignore"):
        measured = float(Meter(rate_hz, filter_class="DeMan").integrated_loudness(padded))
    return measured + 10 * float(np.log10(len(padded) / len(samples))) if len(samples) else -np.inf


def bring_to_loudness(samples: np.ndarray, rate_hz: int, target_lufs: float) -> np.ndarray:
    """`samples` `[T]` times what brings them to `target_lufs`, or to a peak of 1 where that is less; silence stays."""
    measured = loudness_lufs(samples, rate_hz)
    if not np.isfinite(measured):
        return samples
    gain = min(10 ** ((target_lufs - measured) / 20), 1 / float(np.abs(samples).max()))
    return (samples * gain).astype(np.float32)


def cut_segments(samples: np.ndarray, length: int) -> list[np.ndarray]:
    """`samples` `[T]` in consecutive segments of `length`; the last, shorter one only when it is half as long, or all
    there is."""
    whole = len(samples) // length * length
    segments = [samples[start : start + length] for start in range(0, whole, length)]
    rest = samples[whole:]
    if len(rest) and (2 * len(rest) >= length or not segments):
        segments.append(rest)
    return segments
