"""Text prompts: what a record's says, the tokens that a shard keeps of it, and the way back.

Plain Python and NumPy. Ray Data's workers make prompts while they read and encode them while they cut shards; whoever
asks a model encodes what it asks for in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pipeline.data.characters import BytesCodec
from pipeline.data.records import Record
from pipeline.spec import BytesCodecSpec, PromptSpec

PROMPTS_KEPT = 256
"""How many of the training split's commonest prompts the layout names."""
PROMPT_DTYPE = "uint8"
PROMPT_VOCABULARY = BytesCodec.num_symbols + 3
"""UTF-8's bytes, and the tokens that begin, end and pad a prompt."""
PROMPT_PAD = PROMPT_VOCABULARY - 1


def prompt_of(record: Record, spec: PromptSpec) -> str | None:
    """What is written for a record: its label, or what the source gives, in the spec's `words`; None without one."""
    value = record["label"] if spec.of == "label" else record["prompt"]
    if value is None:
        return None
    # A file's name may hold bytes that are no UTF-8.
    return spec.words.get(value, value).encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=8)
def prompt_codec(length: int) -> BytesCodec:
    """The codec of prompts of `length` tokens: begin, UTF-8 bytes, end and padding."""
    return BytesCodec(BytesCodecSpec(kind="bytes", packing="documents", length=length))


def encode_prompts(prompts: Sequence[str | None], length: int) -> np.ndarray:
    """Tokens `[N, length]` of the stored type; one that is longer is cut, and one that is missing nothing but
    padding."""
    codec = prompt_codec(length)
    tokens = np.full((len(prompts), length), PROMPT_PAD, PROMPT_DTYPE)
    # A corpus of few words has each of them very often.
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        if prompt is not None:
            places.setdefault(prompt, []).append(place)
    for rows, encoded in zip(places.values(), codec.encode_batch(list(places)), strict=True):
        tokens[rows] = encoded
    return tokens


def decode_prompt(tokens: np.ndarray) -> str | None:
    """The text of tokens `[P]`; None where they are padding alone."""
    return None if (tokens == PROMPT_PAD).all() else prompt_codec(len(tokens)).decode(tokens)


def prompt_numbers(tokens: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """The place among `known` of each prompt of tokens `[N, P]`, int64 `[N]`; -1 for another one, or none."""
    places = {row.tobytes(): place for place, row in enumerate(encode_prompts(known, tokens.shape[1]))}
    return np.array([places.get(row.tobytes(), -1) for row in tokens.astype(PROMPT_DTYPE)], np.int64)


def is_cut(prompt: str, length: int) -> bool:
    """Whether `length` tokens are too few for a prompt with what begins and ends it."""
    return len(prompt.encode()) > length - 2
