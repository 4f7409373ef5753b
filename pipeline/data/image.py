"""Picture codecs: 8-bit pixels as a signal `[C, H, W]`, or as tokens in raster order.

Pillow and NumPy; nothing to fit. Runs in Ray Data's workers when preparing, and wherever pictures are generated.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from pipeline.data.decoded import MAX_BYTES, Decoded
from pipeline.data.layout import Layout, Modality
from pipeline.data.picture_reading import as_picture, read_picture
from pipeline.spec import ImageCodecSpec, PictureCodecSpec, RasterCodecSpec


class PictureCodec(ABC):
    """What the picture codecs share: reading, fitting into the size, and PNG."""

    modality: ClassVar[Modality] = "image"
    extension: ClassVar[str] = ".png"
    needs_fit: ClassVar[bool] = False

    def __init__(self, spec: PictureCodecSpec) -> None:
        self.spec = spec

    def fit(self, raws: Iterable[np.ndarray]) -> None:  # noqa: B027
        """Pictures have nothing to learn."""

    def meanings(self) -> tuple[Hashable, ...]:
        return ()

    def count_unknown(self, raw: np.ndarray) -> int:
        return 0

    def state(self) -> dict[str, Any]:
        return {"spec": self.spec.model_dump(mode="json")}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """All there is to know is in the spec."""

    @property
    def raw_shape(self) -> tuple[int, int, int]:
        return (*self.spec.size, self.spec.channels)

    def open(self, payload: bytes | np.ndarray, rate: int | None = None, max_bytes: int = MAX_BYTES) -> Decoded:
        """A picture file's bytes, or an array `[H, W]` or `[H, W, any]`, as uint8 `[H, W, C]` of the file's size (a
        large JPEG's at half, a quarter or an eighth of it, still twice the codec's).

        Raises: CodecError when the picture is larger than `max_bytes`, damaged, or none.
        """
        return read_picture(payload, self.spec.channels, max_bytes, needed=self.spec.size)

    def shape(self, raw: np.ndarray, key: str = "") -> list[np.ndarray]:
        """uint8 `[H, W, C]` of any size as one of the codec's, by the spec's `fit`. Where `random_crop` cuts follows
        from `key`, the record's identifier, or from the pixels where there is none."""
        if raw.shape == self.raw_shape:
            return [np.ascontiguousarray(raw, np.uint8)]
        height, width = self.spec.size
        if self.spec.fit == "pad":
            return [self._padded(raw)]
        box = None
        if self.spec.fit != "stretch":
            place = _place(key.encode() or raw.tobytes()) if self.spec.fit == "random_crop" else 0.5
            box = _covering_box(raw.shape[:2], self.spec.size, place)
        picture = as_picture(raw).resize((width, height), Image.Resampling.BICUBIC, box=box)
        return [np.asarray(picture, np.uint8).reshape(self.raw_shape)]

    def _padded(self, raw: np.ndarray) -> np.ndarray:
        """`raw` resized until it lies within the size, in the middle of black."""
        height, width, _ = self.raw_shape
        scale = min(height / raw.shape[0], width / raw.shape[1])
        rows, columns = (max(1, round(extent * scale)) for extent in raw.shape[:2])
        picture = as_picture(raw).resize((columns, rows), Image.Resampling.BICUBIC)
        padded = np.zeros(self.raw_shape, np.uint8)
        top, left = (height - rows) // 2, (width - columns) // 2
        padded[top : top + rows, left : left + columns] = np.asarray(picture).reshape(rows, columns, -1)
        return padded

    def decode_payload(self, payload: bytes | np.ndarray, rate: int | None = None) -> np.ndarray:
        """A picture of the codec's size. Raises: CodecError when it cannot be read."""
        return self.shape(self.open(payload, rate).raw)[0]

    @abstractmethod
    def encode(self, raw: np.ndarray) -> np.ndarray: ...

    def encode_batch(self, raws: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What `encode` gives of each picture."""
        return [self.encode(raw) for raw in raws]

    def to_bytes(self, raw: np.ndarray) -> bytes:
        """A PNG of uint8 `[H, W, C]`."""
        sink = io.BytesIO()
        as_picture(raw).save(sink, "PNG")
        return sink.getvalue()


def _covering_box(extent: tuple[int, ...], size: tuple[int, int], place: float) -> tuple[float, float, float, float]:
    """The largest part of a picture of `extent` (height, width) with the aspect of `size`, as (left, top, right,
    bottom); `place` in [0, 1] is where it lies along the side that is too long, 0.5 in the middle."""
    scale = min(extent[0] / size[0], extent[1] / size[1])
    height, width = size[0] * scale, size[1] * scale
    top, left = (extent[0] - height) * place, (extent[1] - width) * place
    return left, top, min(left + width, extent[1]), min(top + height, extent[0])


def _place(content: bytes) -> float:
    """A number in [0, 1) that `content` decides."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64


class ImageCodec(PictureCodec):
    """Pixels as a signal: stored uint8 `[C, H, W]`, in [0, 1] for networks. Pictures of the codec's size come back
    exactly."""

    def __init__(self, spec: ImageCodecSpec) -> None:
        super().__init__(spec)
        self.likelihood = spec.likelihood

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, C]` as uint8 `[C, H, W]`."""
        return self.shape(raw)[0].transpose(2, 0, 1).copy()

    def encode_batch(self, raws: Sequence[np.ndarray]) -> list[np.ndarray]:
        if not raws:
            return []
        pictures = np.stack([self.shape(raw)[0] for raw in raws])
        return list(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))

    def decode(self, example: np.ndarray) -> np.ndarray:
        """Floats `[C, H, W]` in [0, 1] (cut to it) as uint8 `[H, W, C]`."""
        pixels = np.clip(np.asarray(example, np.float32), 0, 1) * 255
        return np.ascontiguousarray(np.rint(pixels).astype(np.uint8).transpose(1, 2, 0))

    def layout(self, labels: tuple[str, ...] = ()) -> Layout:
        height, width, channels = self.raw_shape
        return Layout(
            modality="image",
            view="signal",
            shape=(channels, height, width),
            stored_dtype="uint8",
            likelihood=self.likelihood,
            scale=1 / 255,
            labels=labels,
        )


class RasterCodec(PictureCodec):
    """Pixels as tokens, row by row and channel within pixel; `levels` steps from black to white. Pixels of the codec's
    size come back within half a step, 255 / (levels - 1) / 2, rounded up to a whole level."""

    def __init__(self, spec: RasterCodecSpec) -> None:
        super().__init__(spec)
        self.levels = spec.levels

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, C]` as uint8 tokens `[H * W * C]`."""
        steps = np.rint(self.shape(raw)[0].reshape(-1).astype(np.float32) * ((self.levels - 1) / 255))
        return steps.astype(np.uint8)

    def meanings(self) -> tuple[Hashable, ...]:
        """The grey of each level, from 0 to 1."""
        return tuple(Fraction(level, self.levels - 1) for level in range(self.levels))

    def decode(self, example: np.ndarray) -> np.ndarray:
        """Integers `[H * W * C]` as uint8 `[H, W, C]`."""
        tokens = np.clip(np.asarray(example), 0, self.levels - 1).astype(np.float32)
        return np.rint(tokens * (255 / (self.levels - 1))).astype(np.uint8).reshape(self.raw_shape)

    def layout(self, labels: tuple[str, ...] = ()) -> Layout:
        height, width, channels = self.raw_shape
        return Layout(
            modality="image",
            view="tokens",
            shape=(height * width * channels,),
            stored_dtype="uint8",
            likelihood="categorical",
            vocabulary=self.levels,
            labels=labels,
            raster=self.raw_shape,
        )
