"""The losses of a critic and its generator, and the penalties that keep a critic's gradient in bounds.

Plain PyTorch; pure functions of scores, and of a critic that gives them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

CriticLoss = Callable[[Tensor, Tensor], Tensor]
GeneratorLoss = Callable[[Tensor], Tensor]
Score = Callable[[Tensor], Tensor]
"""Of examples `[B, ...]`, the critic's scores `[B]`."""


def _entropy_critic(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


LOSSES: dict[str, tuple[CriticLoss, GeneratorLoss]] = {
    # Arjovsky et al. 2017, eq. 2
    "wasserstein": (lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()),
    # Goodfellow et al. 2014, eq. 1, on logits
    "minimax": (_entropy_critic, lambda fake: -F.softplus(fake).mean()),
    # Goodfellow et al. 2014, section 3
    "non_saturating": (_entropy_critic, lambda fake: F.softplus(-fake).mean()),
    # Mao et al. 2017, eq. 9
    "least_squares": (
        lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
        lambda fake: 0.5 * (fake - 1).square().mean(),
    ),
    # Lim and Ye 2017, eq. 3
    "hinge": (lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda fake: -fake.mean()),
}


def gradient_penalty(score: Score, real: Tensor, fake: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """E[(||grad D(x)|| - 1)^2] on straight lines between real and fake (Gulrajani et al. 2017, eq. 3), and the mean
    norm, detached.

    `share` in [0, 1], one number an example: how much of it is real.
    """
    share = share.view(-1, *[1] * (real.dim() - 1))
    norm = _squared_norm(score, share * real + (1 - share) * fake).add(1e-12).sqrt()
    return (norm - 1).square().mean(), norm.detach().mean()


def real_gradient_penalty(score: Score, real: Tensor) -> Tensor:
    """R1, E[||grad D(x)||^2] / 2 over real examples (Mescheder et al. 2018, eq. 9)."""
    return _squared_norm(score, real).mean() / 2


def _squared_norm(score: Score, x: Tensor) -> Tensor:
    """||grad D(x)||^2 of each example, `[B]`, through which gradients pass."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(x).sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(1)
