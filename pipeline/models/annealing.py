"""How the weight of the KL term grows over a training."""

from __future__ import annotations

from pipeline.spec import VaeSpec

RISING_SHARE = 0.5
"""Of a cycle: over its first half the weight rises, over the second it stays (R of Fu et al. 2019, eq. 6)."""


def kl_weight(family: VaeSpec, progress: float) -> float:
    """beta(progress) for a progress in [0, 1].

    With one cycle it rises linearly over the first `kl_warmup` of the training (Bowman et al. 2016). With more, each
    cycle of `kl_warmup / kl_cycles` starts again from zero (Fu et al. 2019, eq. 6 and 7); after them it stays.
    """
    if family.kl_warmup == 0 or progress >= family.kl_warmup:
        return family.beta
    if family.kl_cycles == 1:
        return family.beta * progress / family.kl_warmup
    within = progress / family.kl_warmup * family.kl_cycles % 1
    return family.beta * min(1.0, within / RISING_SHARE)
