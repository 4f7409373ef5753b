"""Drawing tokens from what a network gives: temperature, the likeliest few, the nucleus. Plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.models.base import SamplingOptions


def draw(logits: Tensor, generator: torch.Generator, options: SamplingOptions) -> Tensor:
    """One token `[B]` from logits `[B, V]` at a temperature, among the `top_k` and within the nucleus `top_p`
    (Holtzman et al. 2020)."""
    logits = logits.float() / options.temperature
    if options.top_k is not None and options.top_k < logits.shape[-1]:
        least = logits.topk(options.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if options.top_p is not None and options.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probability = ordered.softmax(-1)
        outside = probability.cumsum(-1) - probability >= options.top_p
        logits = logits.masked_fill(outside.scatter(1, order, outside), -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
