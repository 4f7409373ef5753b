"""Real and made texts for the tests of the evaluation of text."""

from __future__ import annotations

import json
import lzma
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import SHARED_DATA


def _path(name: str) -> Path:
    path = SHARED_DATA / "text" / name
    if not path.exists():
        pytest.skip(f"needs the test corpora beside the checkout, shared/data/text/{name}")
    return path


def captions(split: str) -> list[str]:
    """Captions of pictures, the same in random order every time."""
    return mixed(_path(f"coco_captions/{split}.txt").read_text(encoding="utf-8").splitlines())


def poems() -> list[str]:
    """Chinese poems, each once, in random order."""
    with lzma.open(_path("tang_poems.jsonl.xz"), "rt", encoding="utf-8") as lines:
        return mixed(dict.fromkeys(json.loads(line)["text"] for line in lines))


def mixed(texts) -> list[str]:
    shuffled = list(texts)
    random.Random(0).shuffle(shuffled)
    return shuffled


def sentences(count: int, seed: int) -> list[str]:
    """Made English: a subject, a verb, an object and a place each, of some 2 × 10^7 possible ones."""
    rng = random.Random(seed)
    parts = (
        [f"{a} {n}" for a in ("the old", "a young", "my", "their quiet", "one") for n in NOUNS],
        ["sees", "follows", "forgets", "paints", "calls", "remembers", "carries", "sells"],
        [f"{a} {n}" for a in ("the red", "a small", "no", "another", "every") for n in NOUNS],
        [f"{p} the {n}" for p in ("near", "behind", "under") for n in ("bridge", "house", "river", "market", "hill")],
    )
    return [" ".join(rng.choice(part) for part in parts) + "." for _ in range(count)]


NOUNS = [
    *("fisherman", "teacher", "wolf", "captain", "window", "garden", "letter", "doctor", "horse", "bottle"),
    *("painter", "winter", "mountain", "soldier", "baker", "ship", "mirror", "child", "stranger", "poet"),
]


def edited(text: str, rate: float, rng: random.Random) -> str:
    """The text with a share `rate` of its characters replaced by others of it."""
    return "".join(rng.choice(text) if rng.random() < rate else character for character in text)


def chained(texts: Sequence[str], count: int, order: int, temperature: float, rng: random.Random) -> list[str]:
    """Texts of a chain of characters that knows the last `order`, each drawn at a temperature: low, it says the
    commonest things only."""
    follows: dict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        whole = "\x02" * order + text + "\x03"
        for place in range(order, len(whole)):
            follows[whole[place - order : place]][whole[place]] += 1
    made: list[str] = []
    for _ in range(count):
        state, text = "\x02" * order, ""
        while len(text) < 300:
            counts = follows[state]
            most = max(counts.values())
            weights = [(n / most) ** (1 / temperature) for n in counts.values()]
            character = rng.choices(list(counts), weights)[0]
            if character == "\x03":
                break
            text += character
            state = (state + character)[-order:]
        made.append(text)
    return made
