"""A phase of a model compiled (`torch.compile`): fused kernels, or CUDA graphs, where the compiler manages it.

Plain PyTorch, in every training worker where `training.compile` asks for it. What the compiler cannot do, it often
finds in the backward pass only, or with a batch of another form; so every new form is rehearsed, forwards and
backwards, from a copy of the step's noise and without a gradient kept. Where that fails the phase goes on as it was
written, from the same step with the same numbers, and says why.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from pipeline.models.base import Batch, Output, StepContext
from pipeline.training.holding import PhaseModule

BACKEND = "inductor"
NOT_COMPILED = "not_compiled"


class CompiledPhase(nn.Module):
    """A phase that computes with compiled code; `failure` says why it does not, once it has tried.

    With `cuda_graphs` a step's kernels are recorded once and started together, which gains where they are small.
    """

    def __init__(self, module: PhaseModule, cuda_graphs: bool) -> None:
        super().__init__()
        self.module = module
        self.cuda_graphs = cuda_graphs
        self.failure: str | None = None
        self._rehearsed: set[Hashable] = set()
        # Of the method and not of the module: a compiled module would hold the parameters under other names.
        mode = "reduce-overhead" if cuda_graphs and BACKEND == "inductor" else None
        self._compiled = torch.compile(module.forward, backend=BACKEND, mode=mode)

    def forward(self, batch: Batch | None, context: StepContext) -> Output:
        if self.failure is None:
            form = _form(batch, context)
            if form not in self._rehearsed:
                self._rehearse(batch, context)
                self._rehearsed.add(form)
        if self.failure is not None:
            written: Output = self.module(batch, context)
            return written
        return self._run(batch, context)

    def _run(self, batch: Batch | None, context: StepContext) -> Output:
        # So that a gradient penalty is compiled as part of the loss: what is compiled by itself cannot be
        # differentiated twice.
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            if not self.cuda_graphs:
                output: Output = self._compiled(batch, context)
                return output
            torch.compiler.cudagraph_mark_step_begin()
            output = self._compiled(batch, context)
            # The next step's graph writes to the same memory; the loss is used up before.
            means = {name: value.clone() for name, value in output.means.items()}
            return Output(output.loss, means, output.carry and tuple(part.clone() for part in output.carry))

    def _rehearse(self, batch: Batch | None, context: StepContext) -> None:
        generator = context.noise.generator
        state = generator.get_state()
        trained = [p for p in self.module.parameters() if p.requires_grad]
        try:
            # Not `backward`, which would leave gradients and call the hooks of DistributedDataParallel.
            torch.autograd.grad(self._run(batch, context).loss, trained, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever it is: a mistake of the model's own comes again below, as it was written.
            self.failure = _cause(error)
        finally:
            generator.set_state(state)


def _form(batch: Batch | None, context: StepContext) -> Hashable:
    """What the compiler distinguishes of a step's inputs."""
    tensors = () if batch is None else (batch.x, batch.label, batch.prompt, batch.start)
    return tuple(_shape(t) for t in (*tensors, *(context.carry or ())))


def _shape(value: Tensor | None) -> Hashable:
    return None if value is None else (value.dtype, *value.shape)


def _cause(error: BaseException) -> str:
    """The first line of what went wrong at first, behind what the compiler says around it."""
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
