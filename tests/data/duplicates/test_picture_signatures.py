"""Signatures of pictures: of what is in them, not of their size, their sharpness or how they were compressed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.data.duplicates import DEFAULT_SIMILARITY, SIGNATURE_BYTES, sign, sign_batch, similar, stack
from pipeline.data.duplicates.frequencies import from_int16
from pipeline.data.duplicates.picture import SIDE


def scene(seed: int, side: int = 64, channels: int = 3) -> np.ndarray:
    """A picture of random waves, the finer the weaker, uint8 `[side, side, channels]`."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[:side, :side] / side
    waves = np.zeros((side, side, channels))
    for _ in range(40):
        speed = random.uniform(-9, 9, 2)
        wave = np.cos(2 * np.pi * (speed[0] * down + speed[1] * across) + random.uniform(0, 6))
        waves += wave[..., None] * random.uniform(0.3, 1, channels) / (1 + np.hypot(*speed))
    return np.uint8(np.clip(128 + 40 * waves, 0, 255))


def resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    signatures, _ = stack([sign(first, "image"), sign(second, "image")], "image")
    return float(similar(np.array([[0, 1]]), signatures, "image")[0])


def test_a_stored_signature_is_what_is_computed_again() -> None:
    down, across = np.mgrid[:28, :28]
    picture = np.uint8((down * across + 7 * down * down) % 251)[..., None]
    signature = np.frombuffer(sign(picture, "image"), np.uint8)
    assert signature[:10].tobytes().hex() == "0123c2c8838fd980734a"
    # Coefficients are rounded floats, which another processor may round otherwise by one.
    assert np.allclose(signature[42:58].view("<i2"), [-702, -2436, -541, -103, -5053, -2789, -261, 477], atol=1)


def test_pictures_alone_and_in_a_batch_have_the_same_signature() -> None:
    scenes = [scene(seed, 32) for seed in range(5)]
    alone = [sign(each, "image") for each in scenes]
    together = sign_batch(scenes, "image")
    assert [each[:42] for each in alone] == [each[:42] for each in together]
    assert {len(each) for each in together} == {SIGNATURE_BYTES["image"]}
    assert sign_batch([scenes[0], scene(1, 40)], "image")[0] == alone[0]
    assert sign_batch([], "image") == []


def test_next_to_no_contrast_or_too_few_pixels_is_no_signature() -> None:
    flat = np.full((32, 32, 1), 90, np.uint8)
    flat[3, 4] = 120
    assert sign(flat, "image") == b""
    assert sign(scene(0, SIDE - 1), "image") == b"" != sign(scene(0, SIDE), "image")


@pytest.mark.parametrize("size", [(48, 48), (128, 128), (64, 96)])
def test_a_resized_picture_is_near(size: tuple[int, int]) -> None:
    assert similarity(scene(0), resized(scene(0), *size)) > DEFAULT_SIMILARITY["image"]


def test_a_blurred_picture_is_nearer_than_its_plain_correlation() -> None:
    blurred = resized(resized(scene(0), 20, 20), 64, 64)
    signatures, _ = stack([sign(scene(0), "image"), sign(blurred, "image")], "image")
    plain = float(np.prod(from_int16(signatures[:, 42:]), axis=0).sum())
    assert similarity(scene(0), blurred) > plain + 0.0005


def test_other_pictures_other_colours_and_other_brightness_are_not_near() -> None:
    picture = scene(0)
    assert similarity(picture, scene(1)) < 0.8
    assert similarity(np.uint8(picture * [1, 0.8, 0.6]), np.uint8(picture * [0.6, 0.8, 1])) == 0
    assert similarity(picture, np.uint8(picture * 0.6)) == 0
    assert similarity(picture, 255 - picture) == 0
    assert similarity(picture, picture[:, ::-1]) < 0.8
