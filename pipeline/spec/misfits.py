"""Misfits: parts of a spec that are each right and do not go together, such as a family and a codec.

Each is a line that says which keys, what they are and what would fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.spec.codecs import (
    LogMelCodecSpec,
    MuLawCodecSpec,
    PictureCodecSpec,
    RasterCodecSpec,
    TextCodecSpec,
    WaveformCodecSpec,
)
from pipeline.spec.data import DataSpec
from pipeline.spec.model import ConvBackboneSpec, GanSpec, ModelSpec, ResnetBackboneSpec, RnnSpec
from pipeline.spec.sources import gives_label, gives_prompt, gives_split
from pipeline.spec.training import TrainingSpec


def misfits(data: DataSpec, model: ModelSpec, training: TrainingSpec) -> list[str]:
    """A line for each; none where all fit."""
    codec, family, backbone = data.codec, model.family, model.backbone
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
    if family.kind == "gan" and (training.early_stopping is not None or training.keep_best):
        mistakes.append(
            f"training.{'keep_best' if training.early_stopping is None else 'early_stopping'}: the held-out "
            "objective of model.family.kind 'gan' is its critic's, by which no two steps compare; leave it out, "
            "set training.steps, and evaluate its checkpoints"
        )
    if text and family.kind != "rnn" and isinstance(codec, TextCodecSpec) and codec.packing == "windows":
        mistakes.append(
            f"data.codec.packing 'windows' cuts text anywhere; model.family.kind {family.kind!r} needs 'documents'"
        )
    if data.split.kind == "position" and not text:
        mistakes.append(f"data.split.kind 'position' is for text; data.codec.kind is {codec.kind!r}")
    if data.split.kind == "given" and not gives_split(data.source):
        mistakes.append(
            f"data.split.kind 'given': data.source.kind {data.source.kind!r} as written names no test "
            "records (set test_pattern, split_field or the test array); or take 'hash'"
        )
    mistakes.extend(_misfits_of_conditions(data, model))
    if isinstance(backbone, ConvBackboneSpec | ResnetBackboneSpec) and not tokens:
        mistakes.extend(_misfits_of_levels(codec, backbone))
    return mistakes


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
    if family.pretraining is not None and not (tokens and backbone.kind == "recurrent"):
        yield (
            "model.family.pretraining: only a generator that writes one token after the other can begin as a language "
            "model; set model.backbone.kind: recurrent over tokens, or leave pretraining out"
        )
    if family.gumbel is not None and not tokens:
        yield f"model.family.gumbel: data.codec.kind {codec.kind!r} has no tokens to draw; leave it out"
