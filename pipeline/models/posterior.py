"""q(z | x) of a variational autoencoder: a diagonal Gaussian for each example."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of every unit, in nats (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)


@dataclass(frozen=True)
class Posterior:
    """N(`mean`, exp(`log_variance`)), both `[B, Z]`.

    Log-densities leave out log(2 pi) Z / 2, as those of `priors.py` do.
    """

    mean: Tensor
    log_variance: Tensor

    def at(self, unit: Tensor) -> Tensor:
        """Codes `[B, L, Z]` for standard normal numbers of that shape (Kingma and Welling 2014, section 2.4)."""
        return self.mean.unsqueeze(1) + (0.5 * self.log_variance).exp().unsqueeze(1) * unit

    def kl_units(self) -> Tensor:
        """KL to the standard normal of every unit, in nats `[B, Z]`."""
        return kl_to_standard_normal(self.mean, self.log_variance)

    def log_prob(self, unit: Tensor) -> Tensor:
        """log q of the codes that `unit` `[B, L, Z]` stands for, `[B, L]`."""
        return -0.5 * (unit.square() + self.log_variance.unsqueeze(1)).sum(2)
