"""How a model is scored: the split, the numbers of examples, and whose features tell how examples differ."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.reading import Count, Rate, Strict


class CorpusExtractorSpec(Strict):
    """Features of a small network of the corpus itself: its classifier where it has labels, else an autoencoder."""

    kind: Literal["corpus"] = "corpus"


class NetworkInputSpec(Strict):
    """How a network takes examples, as floats `[B, C, H, W]` for pictures and `[B, T]` for sound.

    Pictures are put in [0, 1], resized to `size` (height, width) by antialiased bilinear interpolation, given
    `channels` and, channel by channel, `mean` taken away and `deviation` divided by. Sound, in [-1, 1], is resampled
    to `sample_rate_hz`.
    """

    size: tuple[Count, Count] | None = None
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.5,)
    deviation: tuple[Rate, ...] = (0.5,)
    sample_rate_hz: Count | None = None

    @model_validator(mode="after")
    def _as_many_as_channels(self) -> NetworkInputSpec:
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} values for channels {self.channels}: give 1 or as many")
        return self


class TorchScriptExtractorSpec(Strict):
    """Features of a network from a TorchScript file at `path` (a path or a URI) whose bytes have the `sha256`, such as
    an Inception, VGGish or DINOv2 network; it gives floats `[B, D]` for a batch as `input` describes it."""

    kind: Literal["torchscript"]
    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    input: NetworkInputSpec = NetworkInputSpec()


AnyExtractorSpec = Annotated[CorpusExtractorSpec | TorchScriptExtractorSpec, Field(discriminator="kind")]


class EvaluationSpec(Strict):
    """How a model is scored on the held-out split.

    `nll_samples` is L of the importance-weighted bound (Burda et al. 2016, eq. 8); `samples` the number of
    generated examples for scores of samples, and with `training_samples` that of training examples, evenly spaced,
    that these are held against; `max_examples` cuts the held-out split. Texts are drawn at each of `temperatures`;
    those at the one nearest to 1 are held against the training split as well.
    """

    split: Literal["test", "validation"] = "test"
    max_examples: Annotated[int | None, Field(ge=1)] = None
    batch_size: Count = 200
    nll_samples: Count = 200
    samples: Annotated[int, Field(ge=2)] = 1000
    training_samples: Count = 50_000
    extractor: AnyExtractorSpec = CorpusExtractorSpec()
    temperatures: Annotated[tuple[Rate, ...], Field(min_length=1)] = (0.7, 1.0, 1.3)
    num_workers: Count = 1
