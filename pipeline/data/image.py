"""Picture codecs: 8-bit pixels as a signal `[C, H, W]`, or as tokens in raster order.

Pillow and NumPy; nothing to fit. Runs in Ray Data's workers when preparing, and wherever pictures are generated.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageOps

from pipeline.data.layout import Layout, Modality
from pipeline.errors import CodecError
from pipeline.spec import ImageCodecSpec, PictureCodecSpec, RasterCodecSpec

# What Pillow's decoders raise on damaged files.
_DAMAGED = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


class PictureCodec:
    """What the picture codecs share: reading, grey or RGB, the crop and the resize, and PNG."""

    modality: ClassVar[Modality] = "image"
    extension: ClassVar[str] = ".png"
    needs_fit: ClassVar[bool] = False

    def __init__(self, spec: PictureCodecSpec) -> None:
        self.spec = spec

    def fit(self, raws: Iterable[np.ndarray]) -> None:
        """Pictures have nothing to learn."""

    def count_unknown(self, raw: np.ndarray) -> int:
        return 0

    def state(self) -> dict[str, Any]:
        return {"spec": self.spec.model_dump(mode="json")}

    def restore(self, state: dict[str, Any]) -> None:
        """All there is to know is in the spec."""

    @property
    def raw_shape(self) -> tuple[int, int, int]:
        return (*self.spec.size, self.spec.channels)

    def decode_payload(self, payload: bytes | np.ndarray, rate: int | None = None) -> np.ndarray:
        """A picture file's bytes, or uint8 `[H, W]` or `[H, W, C]`, as uint8 `[H, W, C]` of the codec's size.

        Raises: CodecError when the file is damaged or no picture.
        """
        if isinstance(payload, np.ndarray):
            return self._fitted(payload)
        try:
            with Image.open(io.BytesIO(payload)) as picture:
                picture.load()
                return self._fitted(ImageOps.exif_transpose(picture))
        except _DAMAGED as error:
            reason = str(error).replace("<_io.BytesIO object at", "<file at")
            reason = "no known picture format" if "cannot identify" in reason else reason
            raise CodecError(f"not a readable picture ({len(payload):,} bytes): {reason}") from None

    def _fitted(self, picture: Image.Image | np.ndarray) -> np.ndarray:
        """`picture` in the codec's channels, its centre cropped to the aspect of the size and resized to it."""
        if isinstance(picture, np.ndarray):
            pixels = picture[..., None] if picture.ndim == 2 else picture
            if pixels.shape == self.raw_shape:
                return np.ascontiguousarray(pixels, np.uint8)
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        if picture.mode.startswith("I"):  # 16-bit grey, which convert() would clip
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        mode = "L" if self.spec.channels == 1 else "RGB"
        picture = picture if picture.mode == mode else picture.convert(mode)
        height, width = self.spec.size
        if picture.size != (width, height):
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
        return np.array(picture, np.uint8).reshape(self.raw_shape)

    def to_bytes(self, raw: np.ndarray) -> bytes:
        """A PNG of uint8 `[H, W, C]`."""
        sink = io.BytesIO()
        Image.fromarray(raw[..., 0] if raw.shape[-1] == 1 else raw).save(sink, "PNG")
        return sink.getvalue()


class ImageCodec(PictureCodec):
    """Pixels as a signal: stored uint8 `[C, H, W]`, in [0, 1] for networks."""

    def __init__(self, spec: ImageCodecSpec) -> None:
        super().__init__(spec)
        self.likelihood = spec.likelihood

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, C]` as uint8 `[C, H, W]`."""
        return np.ascontiguousarray(self._fitted(raw).transpose(2, 0, 1))

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
    """Pixels as tokens, row by row and channel within pixel; `levels` steps from black to white."""

    def __init__(self, spec: RasterCodecSpec) -> None:
        super().__init__(spec)
        self.levels = spec.levels

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, C]` as uint8 tokens `[H * W * C]`."""
        steps = np.rint(self._fitted(raw).reshape(-1).astype(np.float32) * ((self.levels - 1) / 255))
        return steps.astype(np.uint8)

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
        )
