"""Measures of a picture: how much its grey levels differ."""

from __future__ import annotations

import numpy as np
from PIL import Image


def grey_deviation(picture: np.ndarray) -> float:
    """The standard deviation of the grey levels of uint8 `[H, W, C]`, as parts of white, in [0, 0.5].

    Colour becomes grey as in the codecs (ITU-R 601-2 luma, rounded to 8 bits); half black and half white gives 0.5.
    """
    grey = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).convert("L")
    counts = np.array(grey.histogram(), np.float64)
    levels = np.arange(256) / 255
    mean = (counts * levels).sum() / counts.sum()
    return float(np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()))
