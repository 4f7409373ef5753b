"""The generator of a GAN: from noise, and what is asked for, to examples as the critic sees them.

Plain PyTorch. Signals lie within the layout's range; tokens are one-hots `[B, V, T]` that gradients can pass: soft
ones, or samples of a Gumbel-softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.models.backbones import Recurrent, SignalBackbone, make_decoder
from pipeline.models.base import Noise, full_precision
from pipeline.models.conditioning import Asked, make_conditioner
from pipeline.spec import ConditionSpec, GanSpec, GumbelSpec, RecurrentBackboneSpec


class Generator(nn.Module):
    """From noise `[B, Z]`, with the vector of what is asked for behind it, to examples `[B, *shape]`."""

    def __init__(
        self,
        shape: Sequence[int],
        layout: Layout,
        family: GanSpec,
        backbone: SignalBackbone | RecurrentBackboneSpec,
        condition: ConditionSpec,
    ) -> None:
        super().__init__()
        self.layout, self.gumbel = layout, family.gumbel
        self.conditioner = make_conditioner(layout, condition)
        inputs = family.latent_size + (condition.size if self.conditioner is not None else 0)
        self.network = (
            Writer(inputs, backbone, layout)
            if isinstance(backbone, RecurrentBackboneSpec)
            else make_decoder(inputs, backbone, shape)
        )

    def forward(self, z: Tensor, asked: Asked | None, noise: Noise | None = None, progress: float = 1.0) -> Tensor:
        """Examples; `noise` draws the tokens of a Gumbel-softmax, of which the likeliest are taken without it."""
        if self.conditioner is not None:
            assert asked is not None
            z = torch.cat([z, self.conditioner(asked)], dim=1)

        def one_hots(logits: Tensor) -> Tensor:
            return self._one_hots(full_precision(logits), noise, progress)

        if isinstance(self.network, Writer):
            written: Tensor = self.network(z, one_hots)
            return written
        if self.layout.view == "tokens":
            return one_hots(self.network(z))
        low, high = self.layout.low, self.layout.high
        return low + (high - low) * 0.5 * (1 + full_precision(self.network(z)).tanh())

    def nats(self, x: Tensor, z: Tensor, asked: Asked | None) -> Tensor:
        """What a recurrent generator gives up for each token of texts `x` `[B, T]`, in nats `[B, T]`, when it has read
        those before; padding counts, since it writes it as well."""
        assert isinstance(self.network, Writer), "the spec asks for one"
        if self.conditioner is not None:
            assert asked is not None
            z = torch.cat([z, self.conditioner(asked)], dim=1)
        return F.cross_entropy(full_precision(self.network.read(x, z)), x, reduction="none")

    def _one_hots(self, logits: Tensor, noise: Noise | None, progress: float) -> Tensor:
        """Of logits `[B, V, T]`, what the critic sees of them."""
        if self.gumbel is None:
            return logits.softmax(1)
        if noise is None:
            return _hard(logits)
        temperature = temperature_of(self.gumbel, progress)
        return gumbel_softmax(logits, noise, temperature, self.gumbel.straight_through)


class Writer(nn.Module):
    """Tokens one after the other, each fed back to a recurrent network as the critic sees it: `[B, inputs]` to
    `[B, V, T]` (Press et al. 2017, section 3; with a Gumbel-softmax, Kusner and Hernandez-Lobato 2016)."""

    def __init__(self, inputs: int, backbone: RecurrentBackboneSpec, layout: Layout) -> None:
        super().__init__()
        self.length, self.vocabulary = layout.length, layout.vocabulary
        self.embedding = nn.Linear(layout.vocabulary, backbone.embedding_size, bias=False)
        self.recurrent = Recurrent(backbone.embedding_size + inputs, backbone)
        self.head = nn.Linear(backbone.hidden_size, layout.vocabulary)

    def forward(self, z: Tensor, one_hots: Callable[[Tensor], Tensor]) -> Tensor:
        token, carry = z.new_zeros(len(z), self.vocabulary), None
        written: list[Tensor] = []
        for _ in range(self.length):
            seen = torch.cat([self.embedding(token), z], dim=1).unsqueeze(1)  # [B, 1, E + inputs]
            hidden, carry = self.recurrent(seen, carry)
            token = one_hots(self.head(hidden).transpose(1, 2)).squeeze(2)
            written.append(token)
        return torch.stack(written, dim=2)

    def read(self, x: Tensor, z: Tensor) -> Tensor:
        """Logits `[B, V, T]` of each token of `x` `[B, T]` after those before it."""
        before = F.embedding(x[:, :-1], self.embedding.weight.T)
        embedded = F.pad(before, (0, 0, 1, 0))  # nothing stands before the first
        hidden, _ = self.recurrent(torch.cat([embedded, z.unsqueeze(1).expand(-1, x.shape[1], -1)], dim=2))
        logits: Tensor = self.head(hidden)
        return logits.transpose(1, 2)


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
    return _hard(soft) + soft - soft.detach()


def _hard(scores: Tensor) -> Tensor:
    """One-hots of the largest of `scores` `[B, V, T]`."""
    return F.one_hot(scores.argmax(1), scores.shape[1]).transpose(1, 2).to(scores.dtype)
