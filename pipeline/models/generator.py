"""The generator of a GAN: from noise, and what is asked for, to examples as the critic sees them.

Plain PyTorch. Signals lie within the layout's range; tokens are one-hots `[B, V, T]` that gradients can pass: soft
ones, or samples of a Gumbel-softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.models.backbones import SignalBackbone, make_decoder
from pipeline.models.base import Noise, full_precision
from pipeline.models.conditioning import Asked, make_conditioner
from pipeline.spec import ConditionSpec, GanSpec, GumbelSpec


class Generator(nn.Module):
    """From noise `[B, Z]`, with the vector of what is asked for behind it, to examples `[B, *shape]`."""

    def __init__(
        self,
        shape: Sequence[int],
        layout: Layout,
        family: GanSpec,
        backbone: SignalBackbone,
        condition: ConditionSpec,
    ) -> None:
        super().__init__()
        self.layout, self.gumbel = layout, family.gumbel
        self.conditioner = make_conditioner(layout, condition)
        inputs = family.latent_size + (condition.size if self.conditioner is not None else 0)
        self.network = make_decoder(inputs, backbone, shape)

    def forward(self, z: Tensor, asked: Asked | None, noise: Noise | None = None, progress: float = 1.0) -> Tensor:
        """Examples; `noise` draws the tokens of a Gumbel-softmax, of which the likeliest are taken without it."""
        if self.conditioner is not None:
            assert asked is not None
            z = torch.cat([z, self.conditioner(asked)], dim=1)
        drawn = full_precision(self.network(z))
        if self.layout.view == "signal":
            low, high = self.layout.low, self.layout.high
            return low + (high - low) * 0.5 * (1 + drawn.tanh())
        if self.gumbel is None or noise is None:
            return drawn.softmax(1)
        return gumbel_softmax(
            drawn, noise, temperature_of(self.gumbel, progress), straight_through=self.gumbel.straight_through
        )


def temperature_of(gumbel: GumbelSpec, progress: float) -> float:
    """The temperature when `progress` in [0, 1] of the training is done: geometric from the first to the last."""
    return float(gumbel.temperature * (gumbel.final_temperature / gumbel.temperature) ** progress)


def gumbel_softmax(logits: Tensor, noise: Noise, temperature: float, straight_through: bool) -> Tensor:
    """Samples of the categorical `logits` `[B, V, T]` as soft one-hots (Jang et al. 2017, eq. 2).

    The largest entry is a token with its probability softmax(logits), at any temperature. With `straight_through` the
    values are exact one-hots and the gradients those of the soft ones (their section 2.2).
    """
    uniform = noise.uniform(*logits.shape).clamp(min=torch.finfo(torch.float32).tiny)
    soft = ((logits - (-uniform.log()).log()) / temperature).softmax(1)
    if not straight_through:
        return soft
    hard = F.one_hot(soft.argmax(1), logits.shape[1]).transpose(1, 2).to(soft.dtype)
    return hard + soft - soft.detach()
