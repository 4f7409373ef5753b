"""Whether the nodes of a cluster have room for a training's workers, and what to say where they have not.

Plain functions of plain values; a bundle is what one worker asks of its node. For a driver that waits, and the doctor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence


def fits(bundle: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """How many of `bundle` go on a node of `resources`."""
    wanted = {name: amount for name, amount in bundle.items() if amount}
    return min((int(resources.get(name, 0) / amount + 1e-9) for name, amount in wanted.items()), default=0)


def amounts(resources: Mapping[str, float]) -> str:
    """Processors and GPUs in words."""
    shown = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)]
    return " and ".join(shown) or "0 CPU"


def asked(bundle: Mapping[str, float], number: int) -> str:
    """`number` workers of `bundle` in words."""
    return f"{number} worker{'s' * (number != 1)} of {amounts(bundle)}"


def ask_less(bundle: Mapping[str, float]) -> str:
    """What to change in a spec, where there is no room for it."""
    if bundle.get("GPU"):
        return "set training.use_gpu=auto (or false), lower training.num_workers"
    return "lower training.num_workers or training.threads_per_worker"


def lacking(bundle: Mapping[str, float], number: int, nodes: Sequence[Mapping[str, float]]) -> str:
    """Why `number` workers of `bundle` cannot be placed on `nodes`, whatever else is there; "" where they can."""
    fit = sum(fits(bundle, resources) for resources in nodes)
    if fit >= number:
        return ""
    alike = Counter(amounts(resources) for resources in nodes)
    have = ", ".join(f"{count} node{'s' * (count != 1)} of {each}" for each, count in alike.items()) or "no nodes"
    return (
        f"{asked(bundle, number)} wanted, and the cluster has room for {fit} ({have}); training waits for more nodes, "
        f"which an autoscaler may add; where there is none, {ask_less(bundle)}"
    )
