"""Measures of a sound: how loud its loudest moment is, and how much of it is clipped."""

from __future__ import annotations

import numpy as np

WINDOW_SECONDS = 0.05
FULL_SCALE = 0.999
"""At or above this magnitude a sample is clipped: resampling and lossy codecs move full scale a little."""


def peak_level_dbfs(samples: np.ndarray, seconds: float) -> float:
    """The RMS level of the loudest 50 ms of float32 `[T]` that last `seconds`, in dB of full scale.

    20 log10 of the root mean square, so that a full-scale square wave is at 0 dBFS, a full-scale sine at -3.01 and
    digital silence at -inf. The 50 ms may begin at any sample; a shorter sound is taken whole.
    """
    window = max(1, min(len(samples), round(len(samples) * WINDOW_SECONDS / seconds)))
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    loudest = float((energy[window:] - energy[:-window]).max()) / window
    return 10 * float(np.log10(loudest)) if loudest > 0 else -float("inf")


def clipped_share(samples: np.ndarray) -> float:
    """The share of float32 `[T]` that is at full scale (a magnitude of 0.999 or more), in [0, 1]."""
    return float((np.abs(samples) >= FULL_SCALE).mean())
