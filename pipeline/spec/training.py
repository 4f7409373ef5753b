"""The spec of a training: its limits, batches, optimiser, workers, checkpoints, and what is watched in it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.reading import Count, Rate, Share, Strict
from pipeline.spec.health import EarlyStoppingSpec, HealthSpec
from pipeline.spec.profile import ProfileSpec


class TransferSpec(Strict):
    """Which parameters train when, and how fast: for a model that begins with another's weights (`training.init_from`).

    All hold glob patterns of parameter names (`encoder.*`, `*.bias`); one that matches nothing is an error. Parameters
    that `freeze` matches take no step and no weight decay; those of them that a pattern of `unfreeze` matches train
    from that share of the training on. `lr_scales` multiplies the learning rate, by all patterns that match.
    """

    freeze: tuple[str, ...] = ()
    unfreeze: dict[str, Share] = Field(default_factory=dict)
    lr_scales: dict[str, Rate] = Field(default_factory=dict)


class TrainingSpec(Strict):
    """How the model is trained.

    `batch_size` is the global batch: examples in a step over all workers. Training ends at `steps` or, if it
    comes first, after `max_seconds` in the loop (both counted over resumptions) or `epochs` passes over the training
    split, parts of one too; the learning-rate schedule runs over whichever is nearest. Every batch that a step takes
    counts to an epoch: a GAN with five steps of its critic takes five. So do those of a phase that pauses, as a critic
    does in its generator's `pretraining` and `aggressive_steps` once they end: they are passed over, so that which
    batch a step gets does not depend on when that was. `lr` is the peak.
    `micro_batch` is how many of a worker's examples go through the network at once, all of them when null: with less,
    a step adds up the gradients of several passes, which needs less memory, is a little slower, and changes nothing but
    the rounding of sums. `auto` finds how many fit the memory, before the first step and again where a later one of a
    single worker does not fit; a run that is resumed may find another number, and then is the same to rounding, not bit
    for bit. `num_workers: 0` trains in the driver's own process, without Ray Train; `[least, most]` trains on as many
    workers as the cluster has room for, at the same global batch: with fewer when a node goes and, right after a
    checkpoint, with more when one comes, for which it looks every `resize_seconds`. A training that SIGTERM stops has
    `stop_seconds` for a last checkpoint. `placement: pack` keeps the workers on as few nodes as they fit on, `spread`
    on as many as there are. `max_failures` is how often workers may die or fail, and are started again, without a new
    checkpoint in between; with the next failure the training ends. -1 sets no limit.
    `use_gpu: auto` gives each worker a GPU where there are enough; with `true` a training waits for them, and one with
    `num_workers: 0` is refused without one.
    `ema_decay: 0` keeps no average of the weights; otherwise scores and samples use it.
    `load`: the split lies in memory, is streamed from its shards, or, `auto`, is streamed when it is larger than
    `memory_megabytes` (2^20 bytes); the order of the examples is the same. It is a permutation of whole shards, within
    which the rows of as many shards as hold `shuffle_window` examples, or 512 MiB of them, are shuffled together.
    `precision: bfloat16` lets networks compute with half the bits (weights, losses and the optimiser stay in float32);
    `auto` does so where the processor or the GPU multiplies such numbers faster.
    `compile` has the phases compiled (torch.compile), which takes half a minute or more at the start of every run and
    is for long ones; `cuda_graphs` also records what a GPU does in a step, which gains where steps are small. What
    cannot be compiled runs as it is, with a warning. `channels_last` keeps pictures and their convolutions with the
    channels innermost in memory; `auto` does so on a GPU. `tf32` lets a GPU multiply float32 with 10 bits of mantissa
    (sums keep all of them), several times faster. None of these changes more than the rounding.
    `sharding: fsdp` gives each worker a part of every parameter, of its average and of the optimiser's state, for
    models that do not fit one device; checkpoints are the same, and may go on with or without it.
    `init_from` names a model (`models:/NAME@champion`, `models:/NAME/3`, a bundle's folder, a checkpoint's folder) with
    whose weights the training begins, as far as they fit; its optimisers and schedule begin anew. `transfer` says which
    parameters then train when, and how fast.
    A checkpoint comes every `checkpoint_every` steps and, where `checkpoint_minutes` is given, with the first report
    after so many minutes without one; the last `keep_checkpoints` are kept. They are written beside the training, one
    at a time. When they are taken changes no weight, but with `health.rollback` it decides where that goes back to.
    `health` says what happens when a training explodes, `early_stopping` when it ends before its limit. With either
    `early_stopping` or `keep_best` the bundle gets the weights (averaged, where there is an average) of the validation
    with the lowest objective, not the last ones; checkpoints go on from the last ones all the same.
    `profile: true`, or which steps, records a trace of some steps: `profile/…` in the run's folder and in MLflow.
    """

    steps: Count = 10_000
    max_seconds: Annotated[float | None, Field(gt=0)] = None
    epochs: Annotated[float | None, Field(gt=0)] = None
    batch_size: Count = 128
    micro_batch: Count | Literal["auto"] | None = None
    load: Literal["auto", "memory", "stream"] = "auto"
    memory_megabytes: Count = 2048
    shuffle_window: Count = 65_536
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adamw"
    lr: Rate = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    momentum: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    final_lr_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    compile: bool | Literal["cuda_graphs"] = False
    channels_last: bool | Literal["auto"] = "auto"
    tf32: bool = True
    clip_norm: Annotated[float | None, Field(gt=0)] = None
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    ema_decay: Share = 0.0
    init_from: str | None = None
    transfer: TransferSpec = TransferSpec()
    num_workers: Annotated[int, Field(ge=0)] | tuple[Count, Count] = 1
    resize_seconds: Annotated[float, Field(gt=0)] = 60
    stop_seconds: Annotated[float, Field(ge=0)] = 20
    threads_per_worker: Annotated[int | None, Field(ge=1)] = None
    placement: Literal["pack", "spread"] = "pack"
    sharding: Literal["none", "fsdp"] = "none"
    use_gpu: bool | Literal["auto"] = "auto"
    report_every: Count = 50
    checkpoint_every: Count = 1000
    checkpoint_minutes: Annotated[float | None, Field(gt=0)] = None
    validate_every: Count = 1000
    keep_checkpoints: Count = 2
    max_failures: Annotated[int, Field(ge=-1)] = 2
    health: HealthSpec = HealthSpec()
    early_stopping: EarlyStoppingSpec | None = None
    keep_best: bool = False
    profile: bool | ProfileSpec = False

    def profile_spec(self) -> ProfileSpec | None:
        """Which steps to trace, if any."""
        return (ProfileSpec() if self.profile else None) if isinstance(self.profile, bool) else self.profile

    @property
    def fewest_workers(self) -> int:
        """Workers without which it does not train; 0 in the driver's own process."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Workers that it trains on where there is room."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainingSpec:
        fewest, most = self.fewest_workers, self.most_workers
        if fewest > most:
            raise ValueError(f"num_workers [{fewest}, {most}]: the first is the least; write [{most}, {fewest}]")
        numbers = range(max(1, fewest), most + 1)
        least_common = math.lcm(*numbers)
        if self.batch_size % least_common:
            below = self.batch_size // least_common * least_common
            near = f"{below} is the nearest below" if below else f"{least_common} is the smallest"
            near += "" if isinstance(self.num_workers, int) else ", or narrow the range"
            if isinstance(self.num_workers, int):
                asked = f"a multiple of num_workers {self.num_workers}"
            else:
                asked = f"a multiple of every number of workers in num_workers [{fewest}, {most}], so of {least_common}"
            raise ValueError(f"batch_size {self.batch_size} is the global batch and must be {asked}; {near}")
        return self

    @model_validator(mode="after")
    def _shards_fit(self) -> TrainingSpec:
        if self.sharding == "fsdp":
            if self.micro_batch == "auto":
                raise ValueError(
                    "sharding 'fsdp' lets no worker try alone how many examples fit; give micro_batch a number, "
                    "or leave out sharding"
                )
            if self.compile:
                raise ValueError(
                    "sharding 'fsdp' puts parameters together and lets them go within a pass, which is not compiled "
                    "here; leave out compile, or sharding"
                )
            if self.channels_last is True:
                raise ValueError(
                    "sharding 'fsdp' cuts parameters by rows, which must be contiguous; "
                    "leave out channels_last, or sharding"
                )
        return self
