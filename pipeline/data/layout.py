"""What a network learns of a modality: the view, the shape and the likelihood of one encoded example.

A codec makes a `Layout` once, when it is fitted; the manifest, the checkpoint and the registered model carry
it. Values exist in three representations: *raw* (a string, an `[H, W, C]` uint8 picture, a waveform), *stored*
(what the Parquet shards hold: small integers where possible) and *model* (what networks see).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    # Ray Data's workers read layouts and codecs; without torch they start 1.6 s sooner.
    from torch import Tensor

View = Literal["tokens", "signal"]
Modality = Literal["text", "image", "audio"]
Likelihood = Literal["categorical", "bernoulli", "gaussian"]


@dataclass(frozen=True)
class Layout:
    """The form of one encoded example.

    `tokens` examples are integers `[T]` below `vocabulary`; `signal` examples are floats `[C, *space]`, where
    model = stored * `scale` + `offset` lies in [`low`, `high`].

    `continuous` tokens are windows cut from one stream: window i + 1 follows window i, so a recurrent state may
    be carried from one to the next and the target of a window's last token is the first of the next window.

    `raster` is the height, width and number of channels of a picture whose tokens go row by row, channel within pixel.

    `labels` are the training split's, sorted, each with its number of examples in `label_counts`; `prompts` its
    commonest text prompts likewise, and `prompt_length` the tokens that each example's prompt has (0 without any).
    """

    modality: Modality
    view: View
    shape: tuple[int, ...]
    stored_dtype: str
    likelihood: Likelihood
    vocabulary: int = 0
    continuous: bool = False
    begin_token: int | None = None
    end_token: int | None = None
    pad_token: int | None = None
    scale: float = 1.0
    offset: float = 0.0
    low: float = 0.0
    high: float = 1.0
    sample_rate_hz: int | None = None
    labels: tuple[str, ...] = ()
    label_counts: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    prompt_counts: tuple[int, ...] = ()
    prompt_length: int = 0
    raster: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens in one example."""
        return self.shape[0]

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def space(self) -> tuple[int, ...]:
        """The spatial (or temporal) extent of a signal, without channels."""
        return self.shape[1:]

    @property
    def dimensions(self) -> int:
        """Numbers in one example: pixels times channels, samples, or tokens."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def example_bytes(self) -> int:
        """Bytes of one example in the stored type."""
        return self.dimensions * np.dtype(self.stored_dtype).itemsize

    @property
    def loaded_dtype(self) -> np.dtype[Any]:
        """The type of stored values in memory: int32 for uint16, on which torch has few operations."""
        stored = np.dtype(self.stored_dtype)
        return np.dtype(np.int32) if stored == np.uint16 else stored

    def to_model(self, stored: Tensor) -> Tensor:
        """Stored values, any leading dimensions, as networks see them: int64 tokens or floats of the default type."""
        if self.view == "tokens":
            return stored.long()
        # Whole numbers times a Python float are of the default type.
        scaled = stored * self.scale
        return scaled + self.offset if self.offset else scaled

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Layout:
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list | tuple)}
        return cls(**{**values, **lists})
