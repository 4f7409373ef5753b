"""Reading pictures: a file's bytes, or an array, as upright 8-bit grey or RGB pixels.

Pillow and NumPy, in Ray Data's workers. PNG, JPEG, WebP, GIF, TIFF, BMP and PPM; of several frames or pages the first.
Transparency is laid over white, as a page would show it; colour profiles are not applied.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from pipeline.data.decoded import Decoded, check_size
from pipeline.errors import CodecError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
BACKGROUND = "white"

# What Pillow's decoders raise on damaged files.
_DAMAGED = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError),
    *(struct.error, zlib.error),
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation (Exif 2.3, tag 274); 5 to 8 swap width and height."""
_TOLD_IN = frozenset({"exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp"})
_BYTES_PER_VALUE = {"I": 4, "F": 4, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}


def read_picture(
    payload: bytes | np.ndarray, channels: int, max_bytes: int, needed: tuple[int, int] | None = None
) -> Decoded:
    """A picture file's bytes, or an array `[H, W]` or `[H, W, any]`, as uint8 `[H, W, channels]` and its facts.

    Where only `needed` (height, width) pixels are, a JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of its
    size that is at least twice as large on both sides: resized to `needed`, it then differs from the whole by half a
    level on average and by 3 at most (photographs with added noise; 1.7 and 9 at once the size).

    Raises: CodecError when the picture decodes to more than `max_bytes` (found out before it is decoded), is damaged,
    or no picture.
    """
    if isinstance(payload, np.ndarray):
        return _read_array(payload, channels, max_bytes)
    try:
        with Image.open(io.BytesIO(payload), formats=FORMATS) as picture:
            return _read(picture, channels, max_bytes, needed)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CodecError(
            f"the picture is too large for Pillow, whatever data.max_record_megabytes says: {error}"
        ) from None
    except _DAMAGED as error:
        reason = str(error).replace("<_io.BytesIO object at", "<file at")
        reason = "no known picture format" if "cannot identify" in reason else reason or type(error).__name__
        raise CodecError(f"not a readable picture ({len(payload):,} bytes): {reason}") from None


def _read(picture: Image.Image, channels: int, max_bytes: int, needed: tuple[int, int] | None) -> Decoded:
    width, height = picture.size
    values = max(len(picture.getbands()) * _BYTES_PER_VALUE.get(picture.mode, 1), channels)
    check_size(width * height * values, max_bytes, f"a picture of {width:,} × {height:,} pixels")
    mode, format = picture.mode, picture.format
    if format == "JPEG" or format == "MPO":
        orientation = _orientation(picture)
        size = needed if needed is None or orientation < 5 else needed[::-1]
        enough = None if size is None else (2 * size[1], 2 * size[0])
        # Luma is stored on its own: the colours of a picture that is to be grey need not be decoded.
        if channels == 1 or (enough is not None and width >= 2 * enough[0] and height >= 2 * enough[1]):
            picture.draft("L" if channels == 1 else None, enough)
        picture.load()
    else:
        picture.load()
        # PNG may tell it after the pixels; TIFF is upright once it is loaded, but still says how it was.
        orientation = 1 if format == "TIFF" else _orientation(picture)
        width, height = picture.size
    upright = _in_channels(picture, channels)
    if orientation in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[orientation])
    if orientation >= 5:
        width, height = height, width
    facts = {"width": width, "height": height, "mode": mode, "format": format}
    return Decoded(_pixels(upright), facts)


def _read_array(pixels: np.ndarray, channels: int, max_bytes: int) -> Decoded:
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype not in (np.uint8, np.uint16, np.bool_) or pixels.ndim not in (2, 3) or bands not in (1, 3, 4):
        raise CodecError(
            f"an array of {pixels.dtype} {list(pixels.shape)} is no picture; it takes uint8 [H, W] or [H, W, C] of 1, "
            "3 or 4 channels"
        )
    check_size(pixels.nbytes, max_bytes, f"a picture of {pixels.shape[1]:,} × {pixels.shape[0]:,} pixels")
    if pixels.size == 0:
        raise CodecError(f"an array {list(pixels.shape)} has no pixels")
    mode = "L" if bands == 1 else "RGB" if bands == 3 else "RGBA"
    facts = {"width": pixels.shape[1], "height": pixels.shape[0], "mode": mode, "format": "array"}
    if pixels.dtype == np.uint16:
        pixels = _eight_bits(pixels, 65535)
    elif pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    if bands == channels:
        return Decoded(np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], channels)), facts)
    return Decoded(_pixels(_in_channels(as_picture(pixels), channels)), facts)


def as_picture(pixels: np.ndarray) -> Image.Image:
    """uint8 `[H, W]` or `[H, W, C]` for Pillow."""
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


def _pixels(picture: Image.Image) -> np.ndarray:
    """The pixels of a grey or RGB picture, uint8 `[H, W, C]`."""
    shape = (picture.height, picture.width, len(picture.getbands()))
    return np.frombuffer(picture.tobytes(), np.uint8).reshape(shape)


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none that can be read."""
    if _TOLD_IN.isdisjoint(picture.info):
        return 1
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGED:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _in_channels(picture: Image.Image, channels: int) -> Image.Image:
    """A loaded picture of any mode as 8-bit grey or RGB, transparency laid over white."""
    mode = "L" if channels == 1 else "RGB"
    if picture.mode == mode and "transparency" not in picture.info:
        return picture
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = Image.fromarray(_eight_bits(*_wide_grey(picture)))
    elif picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, BACKGROUND)
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    elif picture.mode == "LAB":  # Pillow knows no way from it to grey
        picture = picture.convert("RGB")
    return picture if picture.mode == mode else picture.convert(mode)


def _wide_grey(picture: Image.Image) -> tuple[np.ndarray, float]:
    """The values of a grey picture of more than 8 bits, black at 0, and its white.

    White is the highest number of the type in the file; 1 for floating point. Raises: CodecError on values that are not
    finite.
    """
    values = np.asarray(picture)
    if picture.mode == "F":
        if not np.isfinite(values).all():
            raise CodecError(f"{int((~np.isfinite(values)).sum()):,} of {values.size:,} pixels are not finite")
        return values, 1.0
    if not isinstance(picture, TiffImageFile):
        return values, 65535.0
    bits, signed = picture.tag_v2[BITSPERSAMPLE][0], picture.tag_v2.get(SAMPLEFORMAT, (1,))[0] == 2
    if bits == 32 and not signed:
        values = values.view(np.uint32)
    white = 2.0 ** (bits - signed) - 1
    return (white - values if picture.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0 else values), white


def _eight_bits(values: np.ndarray, white: float) -> np.ndarray:
    """`values` in [0, white], cut to it, as uint8."""
    return np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8)
