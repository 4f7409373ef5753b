"""Near-duplicates made on purpose, as they come about in the wild: edited texts, re-encoded pictures and sounds."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import soxr
from PIL import Image

from pipeline.data.duplicates import candidate_pairs, cluster, near_pairs, num_bands, sign_batch, stack
from pipeline.data.layout import Modality

SENTENCE = re.compile(r"[^.!?;。！？；\n]*[.!?;。！？；\n]+|[^.!?;。！？；\n]+$")


def near_text(text: str, rng: np.random.Generator) -> str:
    """`text` with 5–10% of its words (characters, where words are not parted by spaces) replaced, inserted or deleted;
    half of the time in another case or with other white space; sometimes without one of at least eight sentences."""
    sentences = SENTENCE.findall(text)
    if len(sentences) >= 8 and rng.random() < 0.3:
        del sentences[rng.integers(len(sentences))]
    text = "".join(sentences)
    spaced = len(text.split()) > len(text) / 8
    words = re.findall(r"\S+|\s+", text) if spaced else list(text)
    places = [i for i, word in enumerate(words) if word[0].isalnum()]
    edits = min(len(places), max(1, round(rng.uniform(0.05, 0.1) * len(places))))
    gap = " " if spaced else ""
    for place in rng.permutation(places)[:edits]:
        other = words[rng.choice(places)] or "so"
        words[place] = (other, words[place] + gap + other, "")[rng.integers(3)]
    text = "".join(words)
    if rng.random() < 0.5:
        text = (text.lower(), text.upper(), text.title())[rng.integers(3)]
    if spaced and rng.random() < 0.5:
        text = (text.replace("\n", " "), text.replace(" ", "  "), "\n" + text.replace("\n", "\r\n"))[rng.integers(3)]
    return text


def near_picture(pixels: np.ndarray, rng: np.random.Generator) -> bytes:
    """uint8 `[H, W, C]` as a JPEG of quality 50–90, or resized by a factor of 0.75–2 (and at times back) as a PNG or
    JPEG."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    width, height = picture.size
    how = rng.integers(3)
    if how > 0:
        factor = (0.75, 1.5, 2.0)[rng.integers(3)]
        filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
        picture = picture.resize((round(width * factor), round(height * factor)), filters[rng.integers(3)])
        if rng.random() < 0.5:
            picture = picture.resize((width, height), filters[rng.integers(3)])
    sink = io.BytesIO()
    if how == 1:
        picture.save(sink, "PNG")
    else:
        picture.save(sink, "JPEG", quality=int(rng.integers(50, 91)))
    return sink.getvalue()


def near_sound(samples: np.ndarray, rate: int, rng: np.random.Generator) -> bytes:
    """float32 `[T]` at `rate` hertz, up to 6 dB louder or softer (not so loud that it clips), re-sampled to three
    quarters or twice the rate or not, as a WAV, OGG or MP3 file; sometimes with up to 30 ms of silence in front."""
    peak = float(np.abs(samples).max())
    samples = samples * min(10 ** (rng.uniform(-6, 6) / 20), 0.95 / max(peak, 1e-6))
    if rng.random() < 0.3:
        samples = np.concatenate([np.zeros(int(rng.uniform(0, 0.03) * rate), samples.dtype), samples])
    other = (rate, rate * 3 // 4, rate * 2)[rng.integers(3)]
    container, subtype = (("WAV", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"))[rng.integers(3)]
    if container == "MP3" and other not in (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000):
        other = rate
    if other != rate:
        samples = soxr.resample(samples, rate, other)
    sink = io.BytesIO()
    soundfile.write(sink, np.clip(samples, -1, 1), other, format=container, subtype=subtype)
    return sink.getvalue()


def opened_picture(data: bytes, like: np.ndarray) -> np.ndarray:
    """A picture file as uint8 of the shape of `like`, resized as a codec would."""
    picture = Image.open(io.BytesIO(data))
    if picture.size != (like.shape[1], like.shape[0]):
        picture = picture.resize((like.shape[1], like.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(picture.convert("L" if like.shape[2] == 1 else "RGB")).reshape(like.shape)


def opened_sound(data: bytes, rate: int) -> np.ndarray:
    """A sound file as float32 `[T]` at `rate`."""
    samples, stored = soundfile.read(io.BytesIO(data), dtype="float32")
    return np.asarray(samples if stored == rate else soxr.resample(samples, stored, rate), np.float32)


def near(raw: Any, modality: Modality, rng: np.random.Generator, rate_hz: int = 8000) -> Any:
    """A near-duplicate of `raw` as a codec would open it."""
    if modality == "text":
        return near_text(raw, rng)
    if modality == "image":
        return opened_picture(near_picture(raw, rng), raw)
    return opened_sound(near_sound(raw, rate_hz, rng), rate_hz)


@dataclass(frozen=True)
class Found:
    """What was found of near-duplicates planted behind the originals: `recall` counts those in the cluster of their
    original, of those with enough content to compare; `wrong` are pairs of a planted one with another original, and
    `unplanted` pairs of originals (rows), right or wrong."""

    planted: int
    compared: int
    recall: float
    right: int
    wrong: int
    unplanted: np.ndarray
    largest: int
    candidates: int

    @property
    def precision(self) -> float:
        """Counting all unplanted pairs as wrong."""
        return self.right / max(1, self.right + self.wrong + len(self.unplanted))


def find_planted(
    originals: Sequence[Any],
    chosen: Sequence[int],
    copies: Sequence[Any],
    modality: Modality,
    similarity: float | None = None,
    rate_hz: int = 8000,
) -> Found:
    """Look for `copies`, each a near-duplicate of the original `chosen`, among all."""
    count = len(originals)
    batches = [range(start, min(start + 1000, count)) for start in range(0, count, 1000)]
    signed = [sign for part in batches for sign in sign_batch([originals[i] for i in part], modality, rate_hz)]
    copied = sign_batch(copies, modality, rate_hz)
    signatures, rows = stack(signed + copied, modality)
    candidates, found = 0, np.zeros((0, 2), np.int64)
    for band in range(num_bands(modality)):
        candidates += len(candidate_pairs(signatures, band, modality))
        found = np.unique(np.concatenate([found, rows[near_pairs(signatures, band, modality, similarity)]]), axis=0)
    label = cluster(count + len(copies), found)
    compared = [place for place, row in enumerate(chosen) if signed[row] and copied[place]]
    met = sum(label[count + place] == label[chosen[place]] for place in compared)
    original = np.concatenate([np.arange(count), chosen]).astype(np.int64)
    same = original[found[:, 0]] == original[found[:, 1]]
    old = found[:, 1] < count
    return Found(
        planted=len(copies),
        compared=len(compared),
        recall=met / max(1, len(compared)),
        right=int(np.sum(same)),
        wrong=int(np.sum(~same & ~old)),
        unplanted=found[old],
        largest=int(np.bincount(label).max()),
        candidates=candidates,
    )
