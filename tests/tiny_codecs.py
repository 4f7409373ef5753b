"""Codecs and files for tests of the codecs: small ones of every kind, pictures and sounds as bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from pydantic import TypeAdapter

from pipeline.data.codec import Codec, make_codec
from pipeline.spec import AnyCodecSpec

SPECS: TypeAdapter[Any] = TypeAdapter(AnyCodecSpec)
PACKINGS = ("windows", "documents")
ROLES = ["<|user|>", "<|system|>"]
CODEC_SPECS: list[dict[str, Any]] = [
    *({"kind": kind, "packing": packing, "length": 24} for kind in ("bytes", "characters", "words")
      for packing in PACKINGS),
    *({"kind": kind, "packing": packing, "length": 24, "vocabulary_size": 300} for kind in ("bpe", "unigram")
      for packing in PACKINGS),
    {"kind": "bpe", "length": 24, "vocabulary_size": 300, "special_tokens": ROLES},
    {"kind": "characters", "packing": "documents", "length": 24, "special_tokens": ROLES},
    {"kind": "image", "size": [6, 8]},
    {"kind": "image", "size": [6, 8], "channels": 3, "fit": "random_crop"},
    {"kind": "raster", "size": [6, 8], "channels": 3, "levels": 7, "fit": "pad"},
    {"kind": "waveform", "num_samples": 2048},
    {"kind": "log_mel", "num_samples": 2048, "num_mels": 32, "hop": 64, "fft": 256},
    {"kind": "mu_law", "num_samples": 2048, "trim_silence_dbfs": -60, "loudness_lufs": -23, "segments": "all"},
]  # fmt: skip
TEXTS = ["the quick brown fox", "jumps over", "the lazy dog, 春眠不覺曉"]


def codec_of(**spec: Any) -> Codec:
    """A codec, fitted on `TEXTS` where it learns."""
    codec = make_codec(SPECS.validate_python(spec))
    codec.fit(TEXTS)
    return codec


def raw_for(codec: Codec) -> Any:
    """A raw record of the codec's own size."""
    if codec.modality == "text":
        return TEXTS[2]
    if codec.modality == "image":
        height, width = codec.spec.size
        shape = (height, width, codec.spec.channels)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return tone(440, codec.spec.num_samples, codec.spec.sample_rate_hz)


def tone(hertz: float, num_samples: int, rate: int = 8000, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(num_samples) / rate)).astype(np.float32)


def picture_file(picture: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(sink, format, **options)
    return sink.getvalue()


def sound_file(samples: np.ndarray, rate: int, format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, format=format, subtype=subtype)
    return sink.getvalue()
