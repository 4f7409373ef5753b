"""Raw examples as what a page can hold: pictures and sounds as data URIs, texts cut to a length, all within bounds.

Pure functions of raw examples; the pages call them through a `Media` of each section, which keeps to its allowance.
"""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

MOST_CHARACTERS = 1600
LARGEST_SIDE = 384
"""Pixels of a picture's longer side; a larger one is reduced."""
LOSSLESS_SIDE = 128
"""Up to this side a picture is a PNG, pixel by pixel; above it WebP, a tenth of the bytes."""
MOST_SOUND_SAMPLES = 160_000
"""Samples of a sound that are kept, from its start: 10 s at 16 kHz, 320 kB."""


class Media:
    """The media of one section, up to `most_bytes` of data URIs.

    The first that does not fit, and all after it, are counted in `left_out`.
    """

    def __init__(self, layout: Mapping[str, Any], most_bytes: int) -> None:
        self.kind: str = layout["modality"]
        self.rate: int = layout.get("sample_rate_hz") or 0
        self.most_bytes, self.used, self.left_out = most_bytes, 0, 0

    def show(self, raw: Any, most_characters: int = MOST_CHARACTERS) -> dict[str, Any] | None:
        """What a template needs to show `raw`; None when the allowance is used up."""
        if self.left_out:
            self.left_out += 1
            return None
        if self.kind == "text":
            item: dict[str, Any] = {"kind": "text", "text": shortened(str(raw), most_characters)}
        elif self.kind == "image":
            item = picture(raw)
        else:
            item = sound(np.asarray(raw, np.float32), self.rate)
        size = sum(len(value) for value in item.values() if isinstance(value, str))
        if self.used + size > self.most_bytes:
            self.left_out += 1
            return None
        self.used += size
        return item

    def show_all(self, raws: Sequence[Any], most: int, most_characters: int = MOST_CHARACTERS) -> list[dict[str, Any]]:
        """Those of the first `most` of `raws` that fit; the others are counted as left out."""
        shown = [self.show(raw, most_characters) for raw in raws[:most]]
        self.left_out += max(0, len(raws) - most)
        return [item for item in shown if item is not None]


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    return text if len(text) <= most else text[:most].rstrip() + " …"


def picture(pixels: np.ndarray) -> dict[str, Any]:
    """A picture uint8 `[H, W, C]` as a data URI; small ones keep their pixels when the page enlarges them."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if max(image.size) > LARGEST_SIDE:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    media_type = "image/png" if max(image.size) <= LOSSLESS_SIDE else "image/webp"
    buffer = io.BytesIO()
    if media_type == "image/png":
        image.save(buffer, format="PNG")
    else:
        image.save(buffer, format="WEBP", quality=90)
    return {"kind": "image", "uri": data_uri(media_type, buffer.getvalue()), "small": max(pixels.shape[:2]) <= 96}


def sound(samples: np.ndarray, rate: int) -> dict[str, Any]:
    """A sound float32 `[T]` as a WAV data URI, its outline as an SVG path and its spectrogram as a mask."""
    kept = samples[:MOST_SOUND_SAMPLES]
    pcm = np.round(np.clip(np.nan_to_num(kept), -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
    return {
        "kind": "audio",
        "uri": data_uri("audio/wav", buffer.getvalue()),
        "outline": _outline(pcm / 32767),
        "spectrogram": data_uri("image/png", _spectrogram_mask(pcm / 32767)),
        "seconds": len(samples) / rate,
        "kept_seconds": len(kept) / rate,
    }


def _outline(samples: np.ndarray, columns: int = 160) -> str:
    """The loudest and the quietest value of each of `columns` slices, as a closed path in a box of 160 × 40."""
    parts = np.array_split(samples, min(columns, len(samples)))
    x = np.linspace(0, 160, len(parts))
    top = [20 - 19 * float(part.max()) for part in parts]
    bottom = [20 - 19 * float(part.min()) for part in parts]
    upper = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, top, strict=True))
    lower = "L".join(f"{a:.1f} {b + 0.3:.1f}" for a, b in zip(x[::-1], bottom[::-1], strict=True))
    return f"M{upper}L{lower}Z"


def _spectrogram_mask(samples: np.ndarray, columns: int = 160) -> bytes:
    """A spectrogram over 60 dB as the alpha channel of a PNG, for the page to paint in the colour of its theme."""
    window = 256
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    starts = np.linspace(0, len(padded) - window, columns).astype(int)
    frames = np.stack([padded[start : start + window] for start in starts]) * np.hanning(window)
    magnitude = np.abs(np.fft.rfft(frames, axis=1))[:, 1:].T[::-1]  # [128, columns], high frequencies on top
    decibels = 20 * np.log10(np.maximum(magnitude / max(float(magnitude.max()), 1e-9), 1e-3))
    alpha = np.round(255 * (1 + decibels / 60) ** 1.5).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.merge("LA", (Image.new("L", alpha.shape[::-1]), Image.fromarray(alpha))).save(buffer, format="PNG")
    return buffer.getvalue()


def data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
