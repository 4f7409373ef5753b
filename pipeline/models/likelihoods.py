"""p(x | z) of signals, given what a decoder's network gives: Bernoulli, Gaussian and discretised logistic.

Each takes `decoded` `[N, C, *space]`, unbounded floats, and x of the same shape in the layout's range. Gaussian and
logistic have a width of their own, learned: one for all values of an example, or one for each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.layout import Layout

LEAST_WIDTH = 1e-3
"""Of the width of a density, in the units of the signal: a value that never varies (a border that is always black, a
silence) would else drive it to zero, and the likelihood without bound."""
FIRST_WIDTH = math.exp(-1.0)
WIDTH_PACE = 10.0
"""The width's logarithm is so many times its parameter. Adam moves a parameter by about the learning rate a step, while
a decoder's error falls to a third in some hundred: a width that lags behind weighs the KL too much, and the code stays
empty."""


class SignalLikelihood(nn.Module, ABC):
    """A distribution of signals whose parameter a decoder gives."""

    @abstractmethod
    def log_prob(self, decoded: Tensor, x: Tensor) -> Tensor:
        """log p(x | decoded) in nats, summed over each example `[N]`."""

    @abstractmethod
    def expectation(self, decoded: Tensor) -> Tensor:
        """E[x | decoded] `[N, C, *space]`, within the layout's range."""


class Bernoulli(SignalLikelihood):
    """Every value is 1 with probability sigmoid(decoded), or 0; a grey x in [0, 1] counts as its share of ones."""

    def log_prob(self, decoded: Tensor, x: Tensor) -> Tensor:
        # x log p + (1 - x) log(1 - p), in the form that does not overflow.
        return -F.binary_cross_entropy_with_logits(decoded, x, reduction="none").flatten(1).sum(1)

    def expectation(self, decoded: Tensor) -> Tensor:
        return decoded.sigmoid()


class _Floor(torch.autograd.Function):
    """max(x, floor), whose gradient still passes below the floor where it leads up: a clamp's is zero there, and a
    width that Adam's momentum carried under the least one never came back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, floor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.floor = floor
        return x.clamp(min=floor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,), (gradient,) = ctx.saved_tensors, gradients
        return gradient * ((x >= ctx.floor) | (gradient < 0)), None


class _Located(SignalLikelihood):
    """What the Gaussian and the logistic share: the decoder gives the centre, the width is a parameter."""

    def __init__(self, layout: Layout, per_dimension: bool) -> None:
        super().__init__()
        self.low, self.high = layout.low, layout.high
        shape = layout.shape if per_dimension else ()
        self.paced_log_width = nn.Parameter(torch.full(shape, math.log(FIRST_WIDTH) / WIDTH_PACE))

    def log_width(self) -> Tensor:
        """The logarithm of the width, `[]` or `[C, *space]`."""
        floored: Tensor = _Floor.apply(WIDTH_PACE * self.paced_log_width, math.log(LEAST_WIDTH))
        return floored

    def expectation(self, decoded: Tensor) -> Tensor:
        return decoded.clamp(self.low, self.high)


class Gaussian(_Located):
    """N(decoded, width^2): a density, so its nats depend on the signal's units."""

    def log_prob(self, decoded: Tensor, x: Tensor) -> Tensor:
        log_width = self.log_width()
        nats = 0.5 * ((x - decoded) * (-log_width).exp()).square() + log_width + 0.5 * math.log(2 * math.pi)
        return -nats.flatten(1).sum(1)


class DiscretisedLogistic(_Located):
    """The chance of a stored whole number: the logistic's mass within half a step of it, and all mass beyond the
    outermost (Kingma et al. 2016, appendix; Salimans et al. 2017, eq. 2 with one component)."""

    def __init__(self, layout: Layout, per_dimension: bool) -> None:
        super().__init__(layout, per_dimension)
        self.half_step = layout.scale / 2

    def log_prob(self, decoded: Tensor, x: Tensor) -> Tensor:
        log_width = self.log_width()
        inverse = (-log_width).exp()
        above, below = (x - decoded + self.half_step) * inverse, (x - decoded - self.half_step) * inverse
        # Below the lowest lies nothing, above the highest nothing: their mass is the whole tail.
        lowest, highest = x < self.low + self.half_step, x > self.high - self.half_step
        # log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)), which never cancels.
        inner = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(-2 * self.half_step * inverse))
        nats = torch.where(lowest, F.logsigmoid(above), torch.where(highest, F.logsigmoid(-below), inner))
        return nats.flatten(1).sum(1)


def make_likelihood(kind: str, layout: Layout, per_dimension: bool) -> SignalLikelihood:
    """The likelihood that a spec names, over signals of `layout`."""
    if kind == "bernoulli":
        return Bernoulli()
    return (Gaussian if kind == "gaussian" else DiscretisedLogistic)(layout, per_dimension)
