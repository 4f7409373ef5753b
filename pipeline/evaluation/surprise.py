"""How surprised a model of text is by each token of a held-out passage: the numbers of a heat map.

Plain PyTorch, in whichever process holds the model. Recurrent language models give the exact surprise, variational
autoencoders that of their decoder at the posterior's mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.codec import Codec
from pipeline.data.layout import Layout
from pipeline.data.prepared import SplitArrays
from pipeline.data.text import UNKNOWN
from pipeline.models.base import GenerativeModel
from pipeline.models.rnn import RecurrentLanguageModel
from pipeline.models.vae_tokens import TokenVae

PASSAGE_TOKENS = 400
BURN_IN_TOKENS = 200
MOST_TOKENS_OF_A_CHARACTER = 4


@dataclass(frozen=True)
class Surprise:
    """A piece of text, one token or the few that make one character, and the nats that the model spends on it; None
    where nothing was predicted."""

    piece: str
    nats: float | None


def can_tell_surprise(model: GenerativeModel, layout: Layout) -> bool:
    """Whether `surprise` has numbers for this model."""
    return layout.modality == "text" and isinstance(model, RecurrentLanguageModel | TokenVae)


def surprise(model: GenerativeModel, codec: Codec, layout: Layout, tokens: Tensor, skip: int = 0) -> list[Surprise]:
    """The surprise at each piece of `tokens`, integers `[T]` in the model's representation, after the first `skip`,
    which are read only. Padding is left out; the end of a document is an empty piece, or the end of a line in windows.

    Of a recurrent model the nats of a whole example add up to its negative log-likelihood.
    """
    assert isinstance(model, RecurrentLanguageModel | TokenVae)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nats = model.token_nats(tokens.long().unsqueeze(0).to(device))[0].double().cpu().tolist()
    model.train(was_training)
    numbers, pieces = tokens.numpy(), []
    place = skip
    while place < len(tokens):
        if int(numbers[place]) == layout.pad_token:
            break
        stop = place + 1
        for end in range(place + 1, min(place + MOST_TOKENS_OF_A_CHARACTER, len(tokens)) + 1):
            if UNKNOWN not in codec.decode(numbers[place:end]):
                stop = end
                break
        known = [value for value in nats[place:stop] if not math.isnan(value)]
        piece = str(codec.decode(numbers[place:stop]))
        if piece or known:
            pieces.append(Surprise(piece, math.fsum(known) if known else None))
        place = stop
    return pieces


def held_out_passage(arrays: SplitArrays, layout: Layout, number: int = 0) -> tuple[Tensor, int]:
    """Tokens int64 `[T]` of a held-out passage, and how many of the first are there to be read only: a document, or
    400 tokens of a stream after 200. Another `number` gives another, as far as there are any."""
    if not layout.continuous:
        return layout.to_model(arrays.x[number % len(arrays)]), 0
    stream = layout.to_model(torch.cat([arrays.x.reshape(-1).long(), arrays.tail.long()]))
    starts = max(1, len(stream) // PASSAGE_TOKENS)
    first = number % starts * PASSAGE_TOKENS
    skip = min(first, BURN_IN_TOKENS)
    return stream[first - skip : first + PASSAGE_TOKENS], skip
