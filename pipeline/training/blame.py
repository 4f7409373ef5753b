"""Whose fault it is that a loss or a gradient is not finite: the rows that give it by themselves, and their records.

Plain PyTorch, in every training worker, once a training has failed. A run is taken again for parts of its batch, with
the noise they had and without a step, until single examples are left; with several workers all of them search at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import AtelierError, NonFiniteLossError
from pipeline.training.accumulation import Run, cut
from pipeline.training.guard import NotFiniteError

MOST_ROWS = 8
"""Rows to blame that are looked for; where more are to blame, it is hardly they."""

NameRows = Callable[[Sequence[int]], list[str]]
"""What users call the records of some rows of the training split."""


@dataclass
class Finding:
    """What one rank knows of a failure.

    `loss` is its loss, None where that is not known; `rows` are those to blame, with what their records are called, or,
    unless `alone`, the first of a batch in which no example gives the failure by itself or, where that is None, none
    was looked at; `all_alike` says that every part of the batch that was looked at gives it.
    """

    rank: int
    loss: float | None
    rows: list[int]
    names: list[str]
    alone: bool | None = None
    all_alike: bool = False


def explain(
    failure: NotFiniteError, module: nn.Module | None, micro_batch: int, name_rows: NameRows | None
) -> NonFiniteLossError:
    """The error for users: phase, step, rank, rows, their records, and what to do. A collective where there are several
    ranks: none of them fails alone.

    `module` is the phase's, not wrapped; of a batch no more than `micro_batch` examples are looked at at once. It is
    None where no rank can compute alone: then the rows of the batch are told, and none is singled out.
    """
    run = failure.run
    finding = Finding(run.rank, failure.loss, [], [])
    if run.batch is not None:
        places: list[int] = []
        if module is not None:
            places, finding.all_alike, loss = search(run, module, micro_batch)
            finding.alone = bool(places)
            if failure.loss is None:
                finding.loss = loss
        index = run.batch.index.cpu()
        finding.rows = index[places if places else slice(MOST_ROWS)].tolist()
        finding.names = _names(finding.rows, name_rows)
    findings: list[Finding | None] = [finding]
    if run.world_size > 1:
        findings = [None] * run.world_size
        dist.all_gather_object(findings, finding)
    known = [each for each in findings if each is not None]
    to_blame = [each for each in known if each.alone or _spoilt(each.loss)] or known[:1]
    return NonFiniteLossError("; ".join(_in_words(each, failure) for each in to_blame))


def search(run: Run, module: nn.Module, micro_batch: int) -> tuple[list[int], bool, float | None]:
    """The places in this rank's batch, up to `MOST_ROWS`, of examples that give a loss or a gradient that is not finite
    by themselves; whether every part that was looked at does; and the loss of the first such example."""
    found: list[int] = []
    losses: list[float] = []
    good = 0

    def narrow(rows: Tensor) -> None:
        nonlocal good
        if len(found) == MOST_ROWS:
            return
        loss, spoilt = look(run, module, rows)
        if not spoilt:
            good += 1
        elif len(rows) == 1:
            found.append(int(rows))
            losses.append(loss)
        else:
            for half in rows.chunk(2):
                narrow(half)

    for part in cut(run.batch_size, min(micro_batch, -(-run.batch_size // 2)), run.device):
        narrow(part)
    return sorted(found), good == 0, losses[0] if losses else None


def look(run: Run, module: nn.Module, rows: Tensor) -> tuple[float, bool]:
    """The loss of some examples, and whether it or its gradient is not finite."""
    loss = run.forward(module, rows).loss
    value = float(loss.detach())
    if not math.isfinite(value):
        return value, True
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # Not `backward`, which would call the hooks by which ranks share gradients.
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    return value, not all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)


def _spoilt(loss: float | None) -> bool:
    return loss is not None and not math.isfinite(loss)


def _names(rows: list[int], name_rows: NameRows | None) -> list[str]:
    if name_rows is None:
        return []
    try:
        return name_rows(rows)
    except AtelierError:
        return []  # a storage that does not answer now must not hide the failure


def _in_words(finding: Finding, failure: NotFiniteError) -> str:
    run = failure.run
    if _spoilt(finding.loss):
        what, value = "loss", finding.loss
    else:
        what, value = "gradient", math.nan if failure.gradient is None else failure.gradient
    words = f"the {what} of phase '{run.phase}' is {value} at step {run.step} (rank {finding.rank})"
    if what == "gradient" and finding.loss is not None:
        words += f", its loss being {finding.loss:.4g},"
    steadier = "lower training.lr or set training.clip_norm"
    if not finding.rows:
        return f"{words}; {steadier}"
    listed = f"{finding.rows}{'' if finding.alone else '…'} of the training split"
    named = ", ".join(f"{row} is {name}" for row, name in zip(finding.rows, finding.names, strict=False))
    words += f" on rows {listed}{f' ({named})' if named else ''}"
    if finding.all_alike:
        return f"{words}, and on every other that was tried: it is the weights, not the data; {steadier}"
    if finding.alone:
        return f"{words}, which give it by themselves; look at these records and leave them out, or {steadier}"
    none = "" if finding.alone is None else ", none of which gives it by itself"
    return f"{words}{none}; {steadier}, or look at these rows"
