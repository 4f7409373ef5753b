"""Which parameters of a model train when, and how fast: `training.transfer` read against the parameters' names.

Plain PyTorch, in every training worker; the driver reads it once before anything is launched, so that a pattern that
matches nothing is found there. What is frozen is a function of the progress alone: nothing of it is saved.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from pipeline.errors import SpecError
from pipeline.models.base import GenerativeModel
from pipeline.spec import TransferSpec


class Freezing:
    """The parameters of a model that `transfer` freezes, until when, and the scale of everyone's learning rate."""

    def __init__(self, model: GenerativeModel, transfer: TransferSpec) -> None:
        """Raises: SpecError naming every pattern that matches nothing, with the names that are near it, and a phase
        that would have nothing to train."""
        names = [name for name, _ in model.named_parameters()]
        mistakes = [
            f"training.transfer.{key}: {pattern!r} matches no parameter{_near(pattern, names)}"
            for key, patterns in (
                ("freeze", transfer.freeze),
                ("unfreeze", transfer.unfreeze),
                ("lr_scales", transfer.lr_scales),
            )
            for pattern in patterns
            if not matching(pattern, names)
        ]
        frozen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in transfer.freeze)]
        mistakes += [
            f"training.transfer.unfreeze: {pattern!r} matches no parameter that training.transfer.freeze freezes"
            for pattern in transfer.unfreeze
            if matching(pattern, names) and not matching(pattern, frozen)
        ]
        self.until: dict[str, float] = {
            name: min((at for pattern, at in transfer.unfreeze.items() if fnmatchcase(name, pattern)), default=2.0)
            for name in frozen
        }
        """The share of the training up to which each parameter is frozen; 2 for ever."""
        self.scales: dict[str, float] = dict.fromkeys(names, 1.0)
        for pattern, scale in transfer.lr_scales.items():
            for name in matching(pattern, names):
                self.scales[name] *= scale
        mistakes += [
            f"training.transfer.freeze leaves phase '{phase.name}' nothing to train at the beginning; leave it a "
            "parameter, such as those of its last layer"
            for phase in model.phases()
            if not [n for n in names if n.startswith(phase.parameters) and n not in self.at(0.0)]
        ]
        if mistakes:
            raise SpecError("\n".join(mistakes))

    def at(self, progress: float) -> frozenset[str]:
        """The names of the parameters that are frozen when `progress`, in [0, 1], of the training is done."""
        return frozenset(name for name, until in self.until.items() if progress < until)


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a glob pattern matches, letter case and all."""
    return [name for name in names if fnmatchcase(name, pattern)]


def _near(pattern: str, names: Sequence[str]) -> str:
    """The names that a pattern may have been meant for, as the end of a message."""
    within = [name for name in names if pattern.strip("*.") in name]
    near = within[:3] or difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
    return f"; near it: {', '.join(near)}" if near else f"; there are {', '.join(names[:8])}"
