"""The spec of a run: one frozen, validated tree that is all that crosses from the driver into Ray."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from pipeline.reading import Count, Rate, Share, Strict
from pipeline.spec.codecs import (
    LogMelCodecSpec,
    MuLawCodecSpec,
    PictureCodecSpec,
    RasterCodecSpec,
    TextCodecSpec,
    WaveformCodecSpec,
)
from pipeline.spec.data import DataSpec
from pipeline.spec.evaluation import EvaluationSpec
from pipeline.spec.health import EarlyStoppingSpec, HealthSpec
from pipeline.spec.model import ConvBackboneSpec, GanSpec, ModelSpec, ResnetBackboneSpec, RnnSpec
from pipeline.spec.profile import ProfileSpec
from pipeline.spec.release import ReleaseSpec
from pipeline.spec.sources import gives_label, gives_prompt, gives_split


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
    counts to an epoch: a GAN with five steps of its critic takes five. `lr` is the peak.
    `micro_batch` is how many of a worker's examples go through the network at once, all of them when null: with less,
    a step adds up the gradients of several passes, which needs less memory, is a little slower, and changes nothing but
    the rounding of sums. `auto` finds how many fit the memory, before the first step and again where a later one of a
    single worker does not fit; a run that is resumed may find another number, and then is the same to rounding, not bit
    for bit. `num_workers: 0` trains in the driver's own process, without Ray Train; `[least, most]` trains on as many
    workers as the cluster has room for, at the same global batch: with fewer when a node goes and, right after a
    checkpoint, with more when one comes, for which it looks every `resize_seconds`. A training that SIGTERM stops has
    `stop_seconds` for a last checkpoint. `placement: pack` keeps the workers on as few nodes as they fit on, `spread`
    on as many as there are. `ema_decay: 0` keeps no average of the weights; otherwise scores and samples use it.
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
    max_failures: Annotated[int, Field(ge=0)] = 2
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


class TrackingSpec(Strict):
    """Where MLflow records: `uri` is MLFLOW_TRACKING_URI's value or, by default, an SQLite file in the storage
    (in the working directory when the storage is remote)."""

    uri: str | None = None
    experiment: str = "atelier"


class RegistrySpec(Strict):
    """Under which name the model is registered; None registers nothing."""

    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = None


class RunSpec(Strict):
    """Everything that decides a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    storage: str = "storage"
    data: DataSpec
    model: ModelSpec
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    tracking: TrackingSpec = TrackingSpec()
    registry: RegistrySpec = RegistrySpec()
    release: ReleaseSpec = ReleaseSpec()

    @model_validator(mode="after")
    def _parts_fit(self) -> RunSpec:
        codec, family, backbone = self.data.codec, self.model.family, self.model.backbone
        tokens = isinstance(codec, TextCodecSpec | RasterCodecSpec | MuLawCodecSpec)
        text = isinstance(codec, TextCodecSpec)
        mistakes: list[str] = []
        if family.kind == "rnn" and not tokens:
            mistakes.append(
                f"data.codec.kind {codec.kind!r} makes signals, and model.family.kind 'rnn' models tokens: "
                "take a codec of tokens (bytes, characters, words, bpe, unigram, raster, mu_law) or another family"
            )
        if family.kind == "rnn" and backbone.kind != "recurrent":
            mistakes.append(f"model.backbone.kind {backbone.kind!r}: model.family.kind 'rnn' needs 'recurrent'")
        if isinstance(family, RnnSpec):
            mistakes.extend(_misfits_of_numbers(codec, family))
        if family.kind == "vae" and tokens != (backbone.kind == "recurrent"):
            allowed = "'recurrent'" if tokens else "'mlp', 'conv' or 'resnet'"
            mistakes.append(
                f"model.backbone.kind {backbone.kind!r}: a vae over data.codec.kind {codec.kind!r} needs {allowed}"
            )
        if isinstance(family, GanSpec):
            mistakes.extend(_misfits_of_gan(family, codec, backbone, tokens))
        if family.kind == "vae" and not tokens:
            mistakes.extend(_misfits_of_likelihood(codec, family.likelihood))
        if family.kind == "gan" and (self.training.early_stopping is not None or self.training.keep_best):
            mistakes.append(
                f"training.{'keep_best' if self.training.early_stopping is None else 'early_stopping'}: the held-out "
                "objective of model.family.kind 'gan' is its critic's, by which no two steps compare; leave it out, "
                "set training.steps, and evaluate its checkpoints"
            )
        if text and family.kind != "rnn" and isinstance(codec, TextCodecSpec) and codec.packing == "windows":
            mistakes.append(
                f"data.codec.packing 'windows' cuts text anywhere; model.family.kind {family.kind!r} needs 'documents'"
            )
        if self.data.split.kind == "position" and not text:
            mistakes.append(f"data.split.kind 'position' is for text; data.codec.kind is {codec.kind!r}")
        if self.data.split.kind == "given" and not gives_split(self.data.source):
            mistakes.append(
                f"data.split.kind 'given': data.source.kind {self.data.source.kind!r} as written names no test "
                "records (set test_pattern, split_field or the test array); or take 'hash'"
            )
        mistakes.extend(_misfits_of_conditions(self.data, self.model))
        if isinstance(backbone, ConvBackboneSpec | ResnetBackboneSpec) and not tokens:
            mistakes.extend(_misfits_of_levels(codec, backbone))
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def as_dict(self) -> dict[str, Any]:
        """The whole spec with every default, of JSON types."""
        return self.model_dump(mode="json")

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)


def _misfits_of_numbers(codec: Any, family: RnnSpec) -> Iterable[str]:
    """Pixels and samples are numbers that may be seen directly; the tokens of a text are not, and only pixels lie above
    each other or can be drawn black or white."""
    raster, sound = isinstance(codec, RasterCodecSpec), isinstance(codec, MuLawCodecSpec)
    for key, is_set, fits, needed in (
        ("history", family.history > 0, raster or sound, "'raster' or 'mu_law'"),
        ("frame", family.frame > 1, raster or sound, "'raster' or 'mu_law'"),
        ("rows_above", family.rows_above > 0, raster, "'raster'"),
        ("binarise", family.binarise is not None, raster, "'raster'"),
    ):
        if is_set and not fits:
            yield f"model.family.{key} needs data.codec.kind {needed}, and it is {codec.kind!r}; leave it out"


def _misfits_of_conditions(data: DataSpec, model: ModelSpec) -> Iterable[str]:
    """What is asked for must be in the corpus, as far as the spec can tell."""
    on, source, prompt = model.condition.on, data.source, data.prompt
    kind = f"data.source.kind {getattr(source, 'kind', '')!r} as written gives none"
    if "label" in on and not gives_label(source):
        yield (
            f"model.condition.on has 'label', and {kind}: set label_from, label_pattern, label_field or train_labels, "
            "or take another corpus"
        )
    if "prompt" in on and prompt is None:
        yield "model.condition.on has 'prompt', and data.prompt does not say what the prompts are; set it"
    if prompt is not None and prompt.of == "label" and not gives_label(source):
        yield f"data.prompt.of 'label', and {kind}: set label_from, label_pattern, label_field or train_labels"
    if prompt is not None and prompt.of == "source" and not gives_prompt(source):
        yield f"data.prompt.of 'source', and {kind}: set data.source.prompt_pattern or prompt_field"
    if set(on) >= {"label", "prompt"} and prompt is not None and prompt.of == "label":
        yield (
            "model.condition.on has 'label' and 'prompt', and data.prompt.of 'label' makes them say the same, so that "
            "they could contradict each other; take one of them, or prompts of the source"
        )
    if (on or prompt is not None) and isinstance(data.codec, TextCodecSpec) and data.codec.packing == "windows":
        yield (
            f"{'model.condition.on' if on else 'data.prompt'}: windows of continuous text (data.codec.packing) have no "
            "label and no prompt of their own; take 'documents'"
        )


def _misfits_of_likelihood(codec: Any, likelihood: str | None) -> Iterable[str]:
    """A likelihood is of what the codec makes: shares of black, whole numbers, or any."""
    if likelihood == "bernoulli" and not isinstance(codec, PictureCodecSpec):
        yield (
            f"model.family.likelihood 'bernoulli' is of values between 0 and 1; data.codec.kind {codec.kind!r} makes "
            "others; take 'gaussian'"
        )
    if likelihood == "discretised_logistic" and isinstance(codec, LogMelCodecSpec):
        yield (
            "model.family.likelihood 'discretised_logistic' is of whole numbers, which data.codec.kind 'log_mel' does "
            "not make; take 'gaussian'"
        )


def _misfits_of_levels(codec: Any, backbone: ConvBackboneSpec | ResnetBackboneSpec) -> Iterable[str]:
    """A backbone of levels divides by its stride once a level, rounding up: the signal must be large enough."""
    factor = backbone.stride ** (len(backbone.channels) - 1)
    if isinstance(codec, PictureCodecSpec):
        key, extents = "data.codec.size", list(codec.size)
    elif isinstance(codec, LogMelCodecSpec):
        key, extents = "data.codec.num_mels and .num_samples / .hop", [codec.num_mels, codec.num_samples // codec.hop]
    else:
        key, extents = "data.codec.num_samples", [codec.num_samples]
    if min(extents) <= factor:
        seen = extents if len(extents) > 1 else extents[0]
        yield (
            f"{key} {seen}: too small for a {backbone.kind} backbone of {len(backbone.channels)} levels with stride "
            f"{backbone.stride}, which needs more than {factor}; enlarge it, or shorten model.backbone.channels"
        )


def _misfits_of_gan(family: GanSpec, codec: Any, backbone: Any, tokens: bool) -> Iterable[str]:
    """What a GAN can be told that only some codecs and backbones have."""
    sound = isinstance(codec, WaveformCodecSpec | LogMelCodecSpec)
    critic = family.critic_backbone or backbone
    if backbone.kind == "recurrent" and not tokens:
        yield (
            f"model.backbone.kind 'recurrent': a gan over data.codec.kind {codec.kind!r} needs 'conv', 'resnet' or "
            "'mlp'"
        )
    elif critic.kind == "recurrent":
        yield (
            "model.family.critic_backbone: a recurrent generator needs a critic of another kind, such as "
            "{kind: resnet, channels: [128, 128]}"
        )
    for name in family.augment:
        if tokens or (name in ("shift", "gain", "time_mask")) != sound:
            allowed = (
                "none for tokens" if tokens else "shift, gain, time_mask" if sound else "colour, translation, cutout"
            )
            yield f"model.family.augment {name!r}: data.codec.kind {codec.kind!r} knows {allowed}; leave it out"
    if family.phase_shuffle and not (isinstance(codec, WaveformCodecSpec) and critic.kind in ("conv", "resnet")):
        yield (
            f"model.family.phase_shuffle {family.phase_shuffle}: only for data.codec.kind 'waveform' under a conv or "
            "resnet backbone; set it to 0"
        )
    if family.gumbel is not None and not tokens:
        yield f"model.family.gumbel: data.codec.kind {codec.kind!r} has no tokens to draw; leave it out"
