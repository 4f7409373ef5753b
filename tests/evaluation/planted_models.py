"""Planted models: a copier, a collapsed, a blurred and a noise one, and unseen examples, on corpora of each modality.

Each is a `GenerativeModel` whose `sample` gives examples in the layout's representation, so that it is scored on the
same path as a trained one. What they make is drawn from the training examples (the copier, and the counts of the
blurred texts) or from real examples that nobody else sees (all others).
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.builtin import BUILTINS
from pipeline.data.codec import Codec, make_codec
from pipeline.data.layout import Layout, Modality
from pipeline.data.prepared import SplitArrays
from pipeline.models.base import Batch, GenerativeModel, Noise, Output, Phase, SamplingOptions, StepContext, Sums
from pipeline.spec import make_spec
from tests.conftest import SHARED_DATA

KINDS = ("held_out", "copier", "collapsed", "blurred", "noise")
OUTPUTS = 10
"""Different outputs of the collapsed model."""


@dataclass(frozen=True)
class Corpus:
    """A corpus encoded: `train`, `held_out` (what scores are measured against) and `unseen` (what models draw from),
    `[N, *shape]` as stored, `labels` int64 of the training rows."""

    name: str
    layout: Layout
    codec: Codec
    train: Tensor
    held_out: Tensor
    unseen: Tensor
    labels: Tensor

    @property
    def modality(self) -> Modality:
        return self.layout.modality

    def arrays(self) -> SplitArrays:
        """The training split."""
        return SplitArrays(self.train, self.labels, [str(row) for row in range(len(self.train))], torch.zeros(0).long())

    def texts(self, stored: Tensor) -> list[str]:
        return [str(self.codec.decode(row.numpy())) for row in self.layout.to_model(stored)]


class Planted(GenerativeModel):
    """A model that was not trained: `draw` makes `count` examples with a generator. It has no parameters to step, and
    nothing but its samples can be scored."""

    def __init__(self, layout: Layout, draw: Callable[[int, torch.Generator], Tensor]) -> None:
        super().__init__()
        self.layout, self.draw = layout, draw

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def forward(self, batch: Batch | None, phase: str, context: StepContext) -> Output:
        raise AssertionError(f"a planted model has no phase {phase!r}")

    def sample(self, count: int, generator: torch.Generator, options: SamplingOptions) -> Tensor:
        return self.draw(count, generator)

    def evaluate(
        self, batch: Batch, noise: Noise, carry: tuple[Tensor, ...] | None = None
    ) -> tuple[Sums, tuple[Tensor, ...] | None]:
        return {"examples": torch.tensor(float(len(batch)), dtype=torch.float64)}, None

    def summarise(self, sums: Sums) -> dict[str, float]:
        return {}

    def objective(self) -> str:
        raise AssertionError("a planted model is not trained")


def plant(corpus: Corpus, kind: str) -> Planted:
    """The planted model of a kind in `KINDS` on a corpus."""
    makers = TEXT_MAKERS if corpus.modality == "text" else SIGNAL_MAKERS
    return Planted(corpus.layout, makers[kind](corpus))


Draw = Callable[[int, torch.Generator], Tensor]


def some(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows at random: each no more than once while they last."""
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(-(-count // len(x)))])
    return x[order[:count]]


def held_out(corpus: Corpus) -> Draw:
    return lambda count, generator: corpus.layout.to_model(some(corpus.unseen, count, generator))


def collapsed(corpus: Corpus) -> Draw:
    def draw(count: int, generator: torch.Generator) -> Tensor:
        few = some(corpus.unseen, OUTPUTS, torch.Generator().manual_seed(1))
        return corpus.layout.to_model(few[torch.randint(OUTPUTS, (count,), generator=generator)])

    return draw


# --- pictures and sound ---------------------------------------------------------------------------------------


def signal_copier(corpus: Corpus) -> Draw:
    """Training examples with noise of a tenth of the corpus's contrast."""
    layout = corpus.layout
    scale = 0.1 * float(layout.to_model(corpus.train).std())

    def draw(count: int, generator: torch.Generator) -> Tensor:
        x = layout.to_model(some(corpus.train, count, generator))
        return (x + scale * torch.randn(x.shape, generator=generator)).clamp(layout.low, layout.high)

    return draw


def signal_blurred(corpus: Corpus) -> Draw:
    """Unseen pictures under a Gaussian blur of 5% of their side; sounds under a low-pass of a millisecond."""
    layout = corpus.layout

    def draw(count: int, generator: torch.Generator) -> Tensor:
        x = layout.to_model(some(corpus.unseen, count, generator))
        sigma = 0.05 * max(layout.space) if len(layout.space) == 2 else 1e-3 * (layout.sample_rate_hz or 8000) / 2
        return blur(x, sigma)

    return draw


def blur(x: Tensor, sigma: float) -> Tensor:
    """`x` `[N, C, *space]` under a Gaussian of `sigma` steps along each axis of space."""
    reach = int(3 * sigma) + 1
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    kernel /= kernel.sum()
    for axis in range(2, x.ndim):
        moved = x.movedim(axis, -1)
        flat = F.pad(moved.reshape(-1, 1, moved.shape[-1]), (reach, reach), mode="replicate")
        x = F.conv1d(flat, kernel.view(1, 1, -1)).view(moved.shape).movedim(-1, axis)
    return x


def signal_noise(corpus: Corpus) -> Draw:
    """White noise with the corpus's mean and contrast."""
    layout = corpus.layout
    real = layout.to_model(corpus.train)
    mean, deviation = float(real.mean()), float(real.std())

    def draw(count: int, generator: torch.Generator) -> Tensor:
        x = mean + deviation * torch.randn(count, *layout.shape, generator=generator)
        return x.clamp(layout.low, layout.high)

    return draw


SIGNAL_MAKERS: dict[str, Callable[[Corpus], Draw]] = {
    "held_out": held_out,
    "copier": signal_copier,
    "collapsed": collapsed,
    "blurred": signal_blurred,
    "noise": signal_noise,
}


# --- text -----------------------------------------------------------------------------------------------------


def tokens_of(corpus: Corpus, texts: list[str]) -> Tensor:
    encoded = np.stack([corpus.codec.encode(text) for text in texts])
    return corpus.layout.to_model(torch.from_numpy(encoded.astype(corpus.layout.loaded_dtype)))


def text_copier(corpus: Corpus) -> Draw:
    """Training texts of which one character in fifty is another."""
    texts = corpus.texts(corpus.train)
    letters = sorted(set("".join(texts)))

    def draw(count: int, generator: torch.Generator) -> Tensor:
        chosen = some(torch.arange(len(texts)), count, generator)
        copies = []
        for row in chosen.tolist():
            text = list(texts[row])
            for place in range(len(text)):
                if float(torch.rand((), generator=generator)) < 0.02:
                    text[place] = letters[int(torch.randint(len(letters), (), generator=generator))]
            copies.append("".join(text))
        return tokens_of(corpus, copies)

    return draw


CONTEXT = 4
CHILL = 3.0


def text_blurred(corpus: Corpus) -> Draw:
    """Texts of the commonest turns only: a model of characters given the last four, at temperature 1/3."""
    texts = corpus.texts(corpus.train)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        for place, letter in enumerate(text):
            counts[text[max(0, place - CONTEXT) : place]][letter] += 1
    lengths = [len(text) for text in texts]

    def draw(count: int, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        made = []
        for _ in range(count):
            text, length = "", int(rng.choice(lengths))
            while len(text) < length:
                following = counts.get(text[max(0, len(text) - CONTEXT) :], counts[""])
                chances = np.array(list(following.values()), float) ** CHILL
                text += str(rng.choice(list(following), p=chances / chances.sum()))
            made.append(text)
        return tokens_of(corpus, made)

    return draw


def text_noise(corpus: Corpus) -> Draw:
    """Characters of the corpus at random, in texts of its lengths."""
    texts = corpus.texts(corpus.train)
    letters, lengths = sorted(set("".join(texts))), [len(text) for text in texts]

    def draw(count: int, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        return tokens_of(corpus, ["".join(rng.choice(letters, int(rng.choice(lengths)))) for _ in range(count)])

    return draw


TEXT_MAKERS: dict[str, Callable[[Corpus], Draw]] = {
    "held_out": held_out,
    "copier": text_copier,
    "collapsed": collapsed,
    "blurred": text_blurred,
    "noise": text_noise,
}


# --- corpora --------------------------------------------------------------------------------------------------

DIGITS = {"kind": "image", "size": [28, 28]}
SOUNDS = {"kind": "waveform", "num_samples": 4000, "sample_rate_hz": 8000}
SPECTRA = {"kind": "log_mel", "num_samples": 4000, "sample_rate_hz": 8000}
PASSAGES = {"kind": "bytes", "packing": "documents", "length": 320}


def encode(name: str, codec_spec: dict[str, Any], items: list[tuple[Any, str | None]], held: int, seed: int) -> Corpus:
    """Shuffle raws and their labels, and cut off twice `held` of them."""
    spec = make_spec(
        {
            "name": "planted",
            "data": {"source": {"kind": "builtin", "name": "digits"}, "codec": codec_spec},
            "model": {"family": {"kind": "vae", "latent_size": 2}, "backbone": {"kind": "mlp", "hidden": [4]}}
            if codec_spec["kind"] != "bytes"
            else {"family": {"kind": "rnn"}, "backbone": {"kind": "recurrent", "hidden_size": 4}},
        }
    )
    codec = make_codec(spec.data.codec)
    order = np.random.default_rng(seed).permutation(len(items))
    raws = [items[row][0] for row in order]
    given = [items[row][1] for row in order]
    if codec.needs_fit:
        codec.fit(raws[2 * held :])
    labels = tuple(sorted({label for label in given if label is not None}))
    layout = codec.layout(labels)
    stored = torch.from_numpy(np.stack(codec.encode_batch(raws)).astype(layout.loaded_dtype))
    places = torch.tensor([labels.index(label) if label is not None else -1 for label in given])
    return Corpus(name, layout, codec, stored[2 * held :], stored[:held], stored[held : 2 * held], places[2 * held :])


def passages(text: str, size: int = 300) -> list[tuple[str, None]]:
    return [(text[start : start + size], None) for start in range(0, len(text) - size, size)]


def fixed(sound: np.ndarray, count: int = 4000) -> np.ndarray:
    return np.pad(sound[:count], (0, max(0, count - len(sound)))).astype(np.float32)


@cache
def made_corpus(modality: Modality) -> Corpus:
    """A small corpus that any checkout has."""
    if modality == "image":
        items = [(picture[..., None], label) for picture, label in BUILTINS["digits"].items()]
        return encode("digits", DIGITS, items[::2], 500, 0)
    if modality == "audio":
        notes = [(fixed(np.asarray(sound)), label) for sound, label in BUILTINS["plucked"].items()]
        return encode("plucked", SOUNDS, notes, 300, 0)
    texts = passages("\n".join(sorted(set(topics.values()))))
    return encode("pydoc", PASSAGES, texts, 300, 0)


REAL = {
    "mnist": "image/mnist.npz",
    "fashion_mnist": "image/fashion_mnist.npz",
    "fsdd": "audio/fsdd.tar.xz",
    "fsdd_spectra": "audio/fsdd.tar.xz",
    "tinyshakespeare": "text/tinyshakespeare.txt",
    "captions": "text/coco_captions/train.txt",
    "names": "text/names.txt",
}


@cache
def real_corpus(name: str) -> Corpus:
    """A corpus of `REAL`, which must be there."""
    path = SHARED_DATA / REAL[name]
    if path.suffix == ".npz":
        with np.load(path) as archive:
            rows = slice(0, 8000)
            pairs = zip(archive["x_train"][rows], archive["y_train"][rows], strict=True)
            items: list[tuple[Any, str | None]] = [(picture[..., None], str(label)) for picture, label in pairs]
        return encode(name, DIGITS, items, 1500, 0)
    if path.suffix == ".xz":
        items = []
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    sound, _ = soundfile.read(io.BytesIO(file.read()), dtype="float32")
                    items.append((fixed(sound), member.name.split("/")[-1].split("_")[0]))
        return encode(name, SPECTRA if name.endswith("spectra") else SOUNDS, items, 600, 0)
    text = path.read_text(encoding="utf-8")
    if name == "tinyshakespeare":
        return encode(name, PASSAGES, passages(text), 600, 0)
    lines = [(line, None) for line in text.splitlines()[:8000]]
    return encode(name, PASSAGES, lines, 1000, 0)
