"""Signatures of sounds: of how the spectrum goes, not of the level, the silence around or the rate of the file."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from pipeline.data.duplicates import DEFAULT_SIMILARITY, SIGNATURE_BYTES, sign, similar, stack

RATE = 8000


def melody(seed: int, seconds: float = 0.8, rate: int = RATE) -> np.ndarray:
    """Five random notes with three overtones each, float32 `[T]`."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    sound = np.zeros(len(time))
    for note in range(5):
        start, pitch = note * seconds / 5, random.uniform(120, 700)
        envelope = np.where(time >= start, np.exp(-(time - start) * random.uniform(4, 20)), 0)
        for overtone, strength in enumerate(random.uniform(0, 1, 4), start=1):
            sound += strength * envelope * np.sin(2 * np.pi * overtone * pitch * time)
    return np.float32(sound / np.abs(sound).max() * 0.8)


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    signatures, _ = stack([sign(first, "audio", RATE), sign(second, "audio", RATE)], "audio")
    return float(similar(np.array([[0, 1]]), signatures, "audio")[0])


def test_a_stored_signature_is_what_is_computed_again() -> None:
    signature = np.frombuffer(sign(melody(0), "audio", RATE), np.uint8)
    assert len(signature) == SIGNATURE_BYTES["audio"]
    assert signature[:8].tobytes().hex() == "0322cd92f222a5be"
    assert signature[8:12].view("<f4")[0] == pytest.approx(0.77032, rel=1e-4)
    # Rounded floats, which another processor may compute a little otherwise.
    assert np.allclose(signature[12:28].view("<i2"), [-8543, -7279, -10883, -1350, -638, -3215, 3475, 697], atol=3)


def test_silence_and_clicks_have_no_signature() -> None:
    assert sign(np.zeros(RATE, np.float32), "audio", RATE) == b""
    assert sign(melody(0)[:300], "audio", RATE) == b""
    assert sign(np.zeros(0, np.float32), "audio", RATE) == b""


@pytest.mark.parametrize(
    "edit",
    [
        lambda sound: sound * 0.5,
        lambda sound: np.pad(sound, (700, 1300)),
        lambda sound: soxr.resample(soxr.resample(sound, 8000, 6000), 6000, 8000),
        lambda sound: soxr.resample(soxr.resample(sound, 8000, 16000), 16000, 8000),
        lambda sound: (
            sound + np.float32(1e-3) * np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32)
        ),
        lambda sound: np.rint(sound * 127) / 127,
    ],
    ids=["softer", "silence around", "6 kHz and back", "16 kHz and back", "noise at -60 dB", "8 bits"],
)
def test_the_same_sound_in_other_form_is_near(edit: object) -> None:
    for seed in range(3):
        assert similarity(melody(seed), edit(melody(seed))) > DEFAULT_SIMILARITY["audio"]  # type: ignore[operator]


def test_another_melody_the_reverse_and_another_tempo_are_not_near() -> None:
    assert similarity(melody(0), melody(1)) < 0.9
    assert similarity(melody(0), melody(0)[::-1]) < 0.9
    assert similarity(melody(0), soxr.resample(melody(0), 8000, 9000)) == 0


def test_a_long_sound_is_read_in_parts_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sign(melody(0), "audio", RATE)
    monkeypatch.setattr("pipeline.data.duplicates.sound.FRAMES_AT_ONCE", 17)
    assert sign(melody(0), "audio", RATE) == whole
