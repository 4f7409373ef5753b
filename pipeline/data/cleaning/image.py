"""Measures of a picture: how much its grey levels differ."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

_LEVELS = np.arange(256)
_SQUARES = _LEVELS**2


def grey_deviation(picture: np.ndarray) -> float:
    """The standard deviation of the grey levels of uint8 `[H, W, C]`, as parts of white, in [0, 0.5].

    Colour becomes grey as in the codecs (ITU-R 601-2 luma, rounded to 8 bits); half black and half white gives 0.5.
    """
    grey = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).convert("L")
    counts = np.array(grey.histogram())
    number, total, squares = picture.shape[0] * picture.shape[1], int(counts @ _LEVELS), int(counts @ _SQUARES)
    return math.sqrt(number * squares - total**2) / number / 255  # of whole numbers, so without rounding until here
