"""Picture codecs: every format and mode is read as what it shows, upright and within its size."""

from __future__ import annotations

import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_codecs import codec_of, picture_file

from pipeline.errors import CodecError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
HEIGHT, WIDTH = 24, 32
Y, X = np.mgrid[:HEIGHT, :WIDTH]
SCENE = np.stack([X * 8, Y * 10, 255 - X * 8], -1).astype(np.uint8)
SCENE[:8, :8] = [255, 0, 0]
SCENE[:8, 24:] = [0, 255, 0]
SCENE[16:, :8] = [0, 0, 255]
"""A picture that differs from itself however it is turned or mirrored."""
PICTURE = Image.fromarray(SCENE)
GREY = np.asarray(PICTURE.convert("L"))
COLOUR_CODEC = codec_of(kind="image", size=[HEIGHT, WIDTH], channels=3)
GREY_CODEC = codec_of(kind="image", size=[HEIGHT, WIDTH])
EXACT = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True, "exact": True}}
"""Options with which a format loses least."""

# What a viewer turns upright by each orientation (Exif 2.3, tag 274), turned the other way.
TURNED = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
}


def error_of(file: bytes, shown: np.ndarray) -> int:
    """The largest error of what is read of `file` against `shown` `[H, W, 3]`, in colour and in grey."""
    grey = np.asarray(Image.fromarray(shown).convert("L"))[..., None]
    errors = []
    for codec, expected in ((COLOUR_CODEC, shown), (GREY_CODEC, grey)):
        raw = codec.open(file).raw
        assert raw.dtype == np.uint8 and raw.shape == expected.shape
        errors.append(int(np.abs(raw.astype(int) - expected).max()))
    return max(errors)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_shows_the_same_picture(format: str) -> None:
    file = picture_file(PICTURE, format, **EXACT.get(format, {}))
    assert error_of(file, SCENE) <= {"JPEG": 6, "GIF": 24}.get(format, 0)
    facts = COLOUR_CODEC.open(file).facts
    assert (facts["width"], facts["height"], facts["format"]) == (WIDTH, HEIGHT, format)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.fromarray(np.ascontiguousarray(TURNED[orientation](SCENE)))
    file = picture_file(turned, format, exif=exif, **EXACT.get(format, {}))
    assert error_of(file, SCENE) <= (6 if format == "JPEG" else 0)
    assert COLOUR_CODEC.open(file).facts["width"] == WIDTH


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palettes_are_read_and_a_transparent_colour_is_white(format: str) -> None:
    palette = PICTURE.quantize(32)
    colours, places = np.array(palette.convert("RGB")), np.array(palette)
    assert error_of(picture_file(palette, format), colours) == 0
    colours[places == places[0, 0]] = 255
    assert error_of(picture_file(palette, format, transparency=int(places[0, 0])), colours) == 0


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_over_white(format: str) -> None:
    alpha = (X * 8).astype(np.uint8)
    file = picture_file(np.dstack([SCENE, alpha]), format, **EXACT.get(format, {}))
    assert error_of(file, over_white(SCENE, alpha)) <= 1


def test_transparent_grey_and_transparent_colours_without_a_palette_are_laid_over_white() -> None:
    alpha = (X * 8).astype(np.uint8)
    grey = over_white(np.dstack([GREY] * 3), alpha)
    assert error_of(picture_file(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])), grey) <= 1
    red_is_white = np.where((SCENE == [255, 0, 0]).all(-1, keepdims=True), 255, SCENE).astype(np.uint8)
    assert error_of(picture_file(PICTURE, transparency=(255, 0, 0)), red_is_white) == 0


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("TIFF", {"compression": "group4"}), ("BMP", {})])
def test_one_bit_is_black_and_white(format: str, options: dict[str, Any]) -> None:
    bits = GREY > 100
    assert error_of(picture_file(Image.fromarray(bits), format, **options), np.dstack([bits * np.uint8(255)] * 3)) == 0


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(format: str) -> None:
    levels = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    shown = np.rint(levels / 257).astype(np.uint8)
    assert error_of(picture_file(levels, format), np.dstack([shown] * 3)) == 0
    assert error_of_array(levels, shown) == 0


def error_of_array(pixels: np.ndarray, shown: np.ndarray) -> int:
    return int(np.abs(GREY_CODEC.open(pixels).raw[..., 0].astype(int) - shown).max())


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colours_keep_their_upper_eight(channels: int) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    upper = (levels >> 8).astype(np.uint8)
    shown = upper if channels == 3 else over_white(upper[..., :3], upper[..., 3])
    assert error_of(png_of_rows(levels.astype(">u2"), bits=16, colour_type={3: 2, 4: 6}[channels]), shown) <= 1


@pytest.mark.parametrize(("dtype", "white"), [(np.int32, 2**31 - 1), (np.float32, 1.0)])
def test_the_highest_integer_and_one_are_white(dtype: Any, white: float) -> None:
    file = picture_file(Image.fromarray((GREY / 255 * white).astype(dtype)), "TIFF")
    assert error_of(file, np.dstack([GREY] * 3)) == 0


def test_floats_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CodecError, match="1 of 4 pixels are not finite"):
        GREY_CODEC.open(picture_file(Image.fromarray(np.array([[0, 1], [0.5, np.nan]], np.float32)), "TIFF"))


INKS = np.array([[0, 0, 0, 0], [255, 0, 0, 0], [0, 200, 100, 0], [10, 20, 30, 128], [0, 0, 0, 255]])


@pytest.mark.parametrize("ink", INKS.tolist())
@pytest.mark.parametrize("form", ["TIFF", "Adobe CMYK", "Adobe YCCK"])
def test_inks_darken_the_paper(form: str, ink: list[int]) -> None:
    """Of inks c, m, y and k, red is (255 - c)(255 - k) / 255. Adobe's JPEGs hold 255 minus each ink (libjpeg.txt,
    "Special color spaces"); in YCCK, 255 minus what they hold of c, m, y is red, green and blue of the YCbCr."""
    cyan, magenta, yellow, black = ink
    shown = np.rint((255 - np.array([cyan, magenta, yellow])) * (255 - black) / 255).astype(int)
    stored = [cyan, magenta, yellow, black]
    if form == "Adobe YCCK":
        luma = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow
        planes = [luma, 128 + (yellow - luma) / 1.772, 128 + (cyan - luma) / 1.402, 255 - black]
        stored = [255 - round(min(max(plane, 0), 255)) for plane in planes]  # Pillow stores 255 minus what it is given
    picture = Image.new("CMYK", (16, 16), tuple(stored))
    file = picture_file(picture, "TIFF" if form == "TIFF" else "JPEG", **({} if form == "TIFF" else EXACT["JPEG"]))
    if form == "Adobe YCCK":
        marker = file.index(b"Adobe")  # version, two flags, and then the transform, of which 2 is YCCK
        file = file[: marker + 11] + b"\x02" + file[marker + 12 :]
    raw = codec_of(kind="image", size=[16, 16], channels=3).open(file).raw
    assert np.abs(raw.astype(int) - shown).max() <= 3


def png_of_rows(pixels: np.ndarray, bits: int, colour_type: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG that says it has `size` (width, height), with the rows `[H, W, C]`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width, height = size or (pixels.shape[1], pixels.shape[0])
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("size", "reason"),
    [((9_000, 9_500), "9,000 × 9,500 pixels decodes to 244.6 MiB"), ((30_000, 30_000), "too large")],
)
def test_a_picture_bomb_is_refused_by_what_its_header_says(size: tuple[int, int], reason: str) -> None:
    bomb = png_of_rows(np.zeros((1, 1, 3), np.uint8), 8, 2, size)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(CodecError, match=reason):
        COLOUR_CODEC.open(bomb, max_bytes=200 * 2**20)
    with warnings.catch_warnings(), pytest.raises(CodecError):
        warnings.simplefilter("error")
        COLOUR_CODEC.open(bomb)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_is_cut_is_refused(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    whole = picture_file(noise, format)
    for stop in range(0, len(whole) - 20, 7):  # a PNG's last 20 bytes and a GIF's last 2 hold no pixels
        with pytest.raises(CodecError):
            GREY_CODEC.open(whole[:stop])


@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3]))
def test_pictures_come_back_exactly(seed: int, channels: int) -> None:
    codec = codec_of(kind="image", size=[5, 7], channels=channels)
    raw = np.random.default_rng(seed).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    stored = torch.from_numpy(codec.encode(raw))
    np.testing.assert_array_equal(codec.decode(codec.layout().to_model(stored).numpy()), raw)
    np.testing.assert_array_equal(codec.decode_payload(codec.to_bytes(raw)), raw)


@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(2, 256))
def test_raster_pixels_are_off_by_half_a_step_at_most(seed: int, levels: int) -> None:
    codec = codec_of(kind="raster", size=[16, 16], levels=levels)
    raw = np.random.default_rng(seed).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    raw[0, 0], raw[0, 1] = 0, 255
    again = codec.decode(codec.encode(raw)).astype(int)
    assert np.abs(again - raw).max() <= np.ceil(255 / (levels - 1) / 2) * (levels < 256)
    assert again[0, 0] == 0 and again[0, 1] == 255


# --- fitting into the size ----------------------------------------------------------------------------------------

WIDE = np.zeros((8, 24, 1), np.uint8)
WIDE[:, 8:16], WIDE[:, 16:] = 128, 255
"""Three squares side by side: black, grey, white."""
Y_LARGE, X_LARGE = np.mgrid[:480, :640]


def fitted(fit: str, raw: np.ndarray = WIDE, key: str = "", size: tuple[int, int] = (8, 8)) -> np.ndarray:
    pieces = codec_of(kind="image", size=list(size), fit=fit).shape(raw, key)
    assert len(pieces) == 1 and pieces[0].shape == (*size, 1)
    return pieces[0][..., 0]


def test_crop_takes_the_centre() -> None:
    np.testing.assert_array_equal(fitted("crop"), np.full((8, 8), 128))
    np.testing.assert_array_equal(fitted("crop", WIDE.swapaxes(0, 1)), np.full((8, 8), 128))


def test_pad_keeps_all_of_it_in_the_middle_of_black() -> None:
    padded = fitted("pad", np.full((6, 24, 1), 200, np.uint8), size=(10, 12))
    np.testing.assert_array_equal(padded[3:6], np.full((3, 12), 200))
    assert padded[:3].max() == padded[6:].max() == 0


def test_stretch_keeps_all_of_it_without_regard_to_the_aspect() -> None:
    stretched = fitted("stretch", size=(8, 12))
    np.testing.assert_allclose(stretched[:, [0, 6, 11]], np.tile([0, 128, 255], (8, 1)), atol=1)


def test_random_crop_is_decided_by_the_key_and_reaches_everywhere() -> None:
    crops = [fitted("random_crop", key=f"{i:016x}") for i in range(64)]
    np.testing.assert_array_equal(crops[5], fitted("random_crop", key=f"{5:016x}"))
    means = [crop.mean() for crop in crops]
    assert min(means) < 40 and max(means) > 220 and len(set(means)) > 32


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_jpeg_read_at_a_smaller_scale_fits_as_the_whole_does(channels: int, orientation: int) -> None:
    waves = [np.sin(X_LARGE / period) * np.cos(Y_LARGE / period) for period in (3, 17, 90)]
    pixels = np.clip(128 + 40 * sum(waves), 0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    colours = np.ascontiguousarray(TURNED[orientation](np.dstack([pixels, pixels[::-1], pixels])))
    file = picture_file(colours, "JPEG", quality=90, exif=exif)
    codec = codec_of(kind="image", size=[40, 60], channels=channels)
    decoded = codec.open(file)
    assert (decoded.facts["width"], decoded.facts["height"]) == (640, 480)
    assert decoded.raw.shape == (120, 160, channels)
    whole = codec_of(kind="image", size=[480, 640], channels=channels).open(file).raw
    assert whole.shape == (480, 640, channels)
    error = np.abs(codec.shape(decoded.raw)[0].astype(int) - codec.shape(whole)[0])
    assert error.max() <= 4 and error.mean() < 0.7
