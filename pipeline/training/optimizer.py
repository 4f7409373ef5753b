"""How a phase's parameters are moved: its optimiser, under a learning rate that follows a schedule.

Plain PyTorch, in every training worker.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from pipeline.spec import TrainingSpec


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], training: TrainingSpec, lr_scale: float, scales: Mapping[str, float]
) -> torch.optim.Optimizer:
    """The optimiser of one phase, a group of parameters (under `scale`) for each of the `scales` of the learning rate.
    SGD with momentum 0 is plain gradient descent. A parameter without a gradient takes no step and no decay."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(scales[name], []).append(parameter)
    lr, decay = training.lr * lr_scale, training.weight_decay
    members = [{"params": group, "lr": lr * scale, "scale": scale} for scale, group in groups.items()]
    if training.optimizer == "adam":
        return torch.optim.Adam(members, lr=lr, betas=training.betas, weight_decay=decay, fused=True)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(members, lr=lr, betas=training.betas, weight_decay=decay, fused=True)
    if training.optimizer == "rmsprop":
        return torch.optim.RMSprop(members, lr=lr, momentum=training.momentum, weight_decay=decay)
    descent = torch.optim.SGD(members, lr=lr, momentum=training.momentum, weight_decay=decay, fused=True)
    if training.momentum:
        descent.register_step_pre_hook(_begin_momentum)
    return descent


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Let the momentum of parameters that take their first step be zero before it, which gives the same numbers.

    Left to itself a fused step begins with memory as it finds it: the momentum stays that where the guard lets the
    step be skipped. And it fails for a parameter that was frozen while others of its group took their first step.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


def lr_share(training: TrainingSpec, step: int, progress: float) -> float:
    """The share of the peak learning rate at a step: linear warm-up, then cosine (Loshchilov and Hutter 2017)
    over the progress in [0, 1], down to `final_lr_share`; or constant."""
    share = 1.0
    if training.schedule == "cosine":
        floor = training.final_lr_share
        share = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if training.warmup_steps:
        share *= min(1.0, (step + 1) / training.warmup_steps)
    return share
