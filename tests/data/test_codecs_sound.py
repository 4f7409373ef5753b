"""Sound codecs: every format is read at the right rate, loudness and length, and comes back within its stated error."""

from __future__ import annotations

import tarfile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_codecs import codec_of, sound_file, tone

from pipeline.data.log_mel import LOG_FLOOR, LogMelCodec
from pipeline.data.sound_shaping import cut_segments, loudness_lufs, trim_silence
from pipeline.errors import CodecError
from tests.conftest import SHARED_DATA

# --- reading ------------------------------------------------------------------------------------------------------

# Format, subtype and the largest error of a sine of amplitude 0.5 that was read at half its rate.
FORMATS = [
    *(("WAV", "PCM_U8", 0.01), ("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-5), ("WAV", "PCM_32", 1e-5)),
    *(("WAV", "FLOAT", 1e-5), ("FLAC", "PCM_16", 1e-4), ("OGG", "VORBIS", 0.03), ("OGG", "OPUS", 0.04)),
    *(("MP3", "MPEG_LAYER_III", 0.03), ("AIFF", "PCM_16", 1e-4)),
]


@pytest.mark.parametrize(("format", "subtype", "bound"), FORMATS)
def test_every_format_is_read_mixed_down_and_resampled(format: str, subtype: str, bound: float) -> None:
    codec = codec_of(kind="waveform", num_samples=8000)
    sine = tone(440, 16000, 16000)
    louder_and_quieter = np.stack([1.5 * sine, 0.5 * sine], axis=1)
    decoded = codec.open(sound_file(louder_and_quieter, 16000, format, subtype))
    assert decoded.raw.dtype == np.float32 and decoded.raw.shape == (8000,)
    assert np.abs(decoded.raw - tone(440, 8000))[100:-100].max() < bound
    assert decoded.facts == {"rate_hz": 16000, "channels": 2, "seconds": 1.0, "format": format}


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 96000])
def test_the_beginning_read_alone_is_that_of_the_whole(rate: int) -> None:
    noise = np.random.default_rng(0).uniform(-0.7, 0.7, 8 * rate).astype(np.float32)
    file = sound_file(noise, rate, subtype="FLOAT")
    beginning, whole = (codec_of(kind="waveform", num_samples=2048, segments=s).open(file) for s in ("first", "all"))
    assert len(beginning.raw) == 2048 and len(whole.raw) == 64000
    assert np.abs(beginning.raw - whole.raw[:2048]).max() <= 1e-6
    assert beginning.facts == whole.facts


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.float64])
def test_arrays_of_integers_are_of_full_scale(dtype: Any) -> None:
    sine = tone(440, 2000).astype(np.float64)
    scale, offset = {"i": (2.0 ** (8 * np.dtype(dtype).itemsize - 1), 0), "u": (128, 128), "f": (1, 0)}[
        np.dtype(dtype).kind
    ]
    raw = codec_of(kind="waveform").open((sine * scale + offset).astype(dtype), 8000).raw
    assert np.abs(raw - sine).max() < (0.01 if dtype == np.uint8 else 1e-4)


def test_a_sound_shorter_than_an_example_is_padded_with_silence() -> None:
    codec = codec_of(kind="waveform", num_samples=8000)
    assert codec.encode(tone(440, 100))[0, 100:].max() == 0


def test_a_header_that_promises_ten_hours_is_refused_before_it_is_believed() -> None:
    file = bytearray(sound_file(np.zeros(1000), 8000, "FLAC"))
    frames = 36_000 * 8000
    file[21:26] = ((file[21] & 0xF0) << 32 | frames).to_bytes(
        5, "big"
    )  # STREAMINFO: the last 36 bits of its first 18 bytes
    with pytest.raises(CodecError, match=r"36,000.0 s decodes to 1,098.6 MiB"):
        codec_of(kind="waveform").open(bytes(file))


@pytest.mark.parametrize(
    ("format", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("AIFF", "PCM_16"), ("FLAC", "PCM_16")]
)
def test_a_sound_that_is_cut_is_refused(format: str, subtype: str) -> None:
    codec = codec_of(kind="waveform", num_samples=64)
    whole = sound_file(np.random.default_rng(0).uniform(-0.5, 0.5, 8000), 8000, format, subtype)
    codec.open(whole)
    for stop in range(0, len(whole) // 2, 997):
        with pytest.raises(CodecError):
            codec.open(whole[:stop])
    with pytest.raises(CodecError, match="cut short" if format != "FLAC" else "readable"):
        codec_of(kind="waveform", segments="all").open(whole[: len(whole) - 100])


def test_a_wav_that_was_written_to_a_pipe_is_read_to_its_end() -> None:
    file = bytearray(sound_file(tone(440, 1000), 8000))
    place = file.index(b"data")
    file[4:8] = file[place + 4 : place + 8] = b"\xff\xff\xff\xff"
    assert len(codec_of(kind="waveform").open(bytes(file)).raw) == 1000


# --- shaping ------------------------------------------------------------------------------------------------------


def test_silence_is_trimmed_to_ten_milliseconds() -> None:
    quiet = np.full(1000, 0.001, np.float32)  # -60 dBFS
    sound = np.concatenate([quiet, tone(440, 800), quiet, tone(440, 800), quiet])
    np.testing.assert_array_equal(trim_silence(sound, 8000, -50), sound[960:3600])
    np.testing.assert_array_equal(trim_silence(sound, 8000, -60.1), sound)
    assert trim_silence(quiet, 8000, -50).size == 0 == trim_silence(quiet[:0], 8000, -50).size


def test_a_sound_silent_from_end_to_end_makes_no_piece() -> None:
    codec = codec_of(kind="waveform", trim_silence_dbfs=-50)
    assert codec.shape(np.zeros(1000, np.float32)) == []
    assert codec.decode_payload(np.zeros(1000, np.float32)).shape == (0,)


@pytest.mark.parametrize("seconds", [0.2, 0.4, 3])
@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_a_full_scale_sine_of_997_hz_is_at_minus_3_01_lufs(rate: int, seconds: float) -> None:
    """ITU-R BS.1770-4, the note to equation 2; a tenth of the amplitude is 20 dB less."""
    sine = tone(997, round(seconds * rate), rate, 1.0)
    assert loudness_lufs(sine, rate) == pytest.approx(-3.01, abs=0.05)
    assert loudness_lufs(0.1 * sine, rate) == pytest.approx(-23.01, abs=0.05)


def test_sounds_are_brought_to_one_loudness_and_never_clip() -> None:
    codec = codec_of(kind="waveform", loudness_lufs=-23)
    (piece,) = codec.shape(tone(440, 8000, amplitude=0.9))
    assert loudness_lufs(piece, 8000) == pytest.approx(-23, abs=0.01)
    click = np.zeros(8000, np.float32)
    click[4000] = 0.1
    (piece,) = codec.shape(click)
    assert np.abs(piece).max() == pytest.approx(1) and loudness_lufs(piece, 8000) < -23
    np.testing.assert_array_equal(codec.shape(np.zeros(8000, np.float32))[0], np.zeros(8000))


@pytest.mark.parametrize(
    ("length", "sizes"), [(10, [10]), (50, [50]), (149, [100]), (150, [100, 50]), (300, [100] * 3)]
)
def test_segments_cover_a_sound_but_for_a_short_rest(length: int, sizes: list[int]) -> None:
    samples = np.arange(length, dtype=np.float32)
    segments = cut_segments(samples, 100)
    assert [len(segment) for segment in segments] == sizes
    np.testing.assert_array_equal(np.concatenate(segments), samples[: sum(sizes)])
    codecs = (codec_of(kind="waveform", num_samples=100, segments=segments) for segments in ("first", "all"))
    assert [len(codec.shape(samples)) for codec in codecs] == [1, len(sizes)]


# --- round trips --------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1))
@example(seed=219)  # half a step, and the rounding of single precision on top
def test_waveforms_come_back_within_half_a_step(seed: int) -> None:
    codec = codec_of(kind="waveform", num_samples=64)
    raw = np.random.default_rng(seed).uniform(-1, 1, 64).astype(np.float32)
    again = codec.decode(codec.layout().to_model(torch.from_numpy(codec.encode(raw))).numpy())
    assert np.abs(again.astype(np.float64) - raw).max() <= 0.5 / 32767 + np.finfo(np.float32).eps


@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(4, 256), exponent=st.floats(0, 6))
def test_mu_law_samples_come_back_within_the_bound_of_its_formula(seed: int, levels: int, exponent: float) -> None:
    codec = codec_of(kind="mu_law", num_samples=64, levels=levels)
    raw = np.random.default_rng(seed).uniform(-1, 1, 64).astype(np.float32) * np.float32(10**-exponent)
    mu = levels - 1
    bound = (np.abs(raw) + 1 / mu) * ((1 + mu) ** (1 / mu) - 1)
    error = np.abs(codec.decode(codec.encode(raw)).astype(np.float64) - raw)
    assert (error <= bound * (1 + 1e-4) + 1e-6).all()


def test_mu_law_errs_less_near_silence_than_even_steps_would() -> None:
    codec = codec_of(kind="mu_law", num_samples=1000)
    quiet = np.linspace(-0.02, 0.02, 1000, dtype=np.float32)
    assert np.abs(codec.decode(codec.encode(quiet)) - quiet).max() < 0.25 / 256


def test_mu_law_tokens_come_back_exactly() -> None:
    codec = codec_of(kind="mu_law", num_samples=256)
    np.testing.assert_array_equal(codec.encode(codec.decode(np.arange(256))), np.arange(256))


@pytest.mark.parametrize(("levels", "dtype"), [(256, "uint16"), (254, "uint8"), (16, "uint8")])
def test_mu_law_says_where_a_sound_ends_and_gives_silence_behind_it(levels: int, dtype: str) -> None:
    codec = codec_of(kind="mu_law", num_samples=64, levels=levels)
    layout = codec.layout()
    assert layout.stored_dtype == dtype
    whole = tone(440, 64)
    for length in (0, 20, 63, 64, 70):
        tokens = codec.encode(tone(440, length))
        assert tokens.dtype == dtype
        assert tokens.max() < layout.vocabulary
        assert (tokens[:length] < levels).all()
        assert (tokens[length : length + 1] == layout.end_token).all()
        assert (tokens[length + 1 :] == layout.pad_token).all()
        again = codec.decode(tokens)
        assert again.shape == (64,)
        np.testing.assert_array_equal(again[:length], codec.decode(codec.encode(whole))[:length])
        assert not again[length:].any()


def log_mel_codec(**spec: Any) -> LogMelCodec:
    codec = codec_of(kind="log_mel", **spec)
    assert isinstance(codec, LogMelCodec)
    return codec


def magnitudes_of(log_mel: np.ndarray) -> np.ndarray:
    """Mel magnitudes of the picture, full scale at 1."""
    return np.exp((1 - log_mel.astype(np.float64)) * (LOG_FLOOR / 2))


def decibels_and_convergence(codec: LogMelCodec, raw: np.ndarray) -> tuple[float, float]:
    """What the way to sound and back to a log-mel picture changes: the mean difference in dB, and the spectral
    convergence of the mel magnitudes."""
    before = codec.encode(raw)
    after = codec.encode(codec.decode(before))
    decibels = 20 / np.log(10) * np.abs(after - before).mean() * (-LOG_FLOOR / 2)
    difference = magnitudes_of(after) - magnitudes_of(before)
    return float(decibels), float(np.linalg.norm(difference) / np.linalg.norm(magnitudes_of(before)))


@pytest.mark.parametrize(("rate", "fft", "num_mels"), [(8000, 512, 64), (16000, 1024, 80), (22050, 512, 96)])
def test_mel_filters_are_htk_s_triangles_each_summing_to_one(rate: int, fft: int, num_mels: int) -> None:
    """Against the closed form, triangle by triangle: mel(f) = 2595 log10(1 + f / 700)."""
    filters = log_mel_codec(sample_rate_hz=rate, fft=fft, num_mels=num_mels)._filters.numpy()
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = [700 * (10 ** (top * i / (num_mels + 1) / 2595) - 1) for i in range(num_mels + 2)]
    for i, row in enumerate(filters):
        left, centre, right = edges[i : i + 3]
        triangle = np.interp(np.arange(fft // 2 + 1) * rate / fft, [left, centre, right], [0, 1, 0])
        if triangle.sum() > 0:
            np.testing.assert_allclose(row, triangle / triangle.sum(), atol=2e-4)
        else:  # too narrow to hold a bin of the transform
            assert row.max() == 1 and abs(row.argmax() * rate / fft - centre) <= rate / fft / 2 + 1e-6


@pytest.mark.parametrize("hertz", [500, 1000, 3000])
def test_the_log_mel_of_a_tone_is_what_its_spectrum_says(hertz: int) -> None:
    """Of a sine of amplitude a at a bin's frequency, a Hann window gives a in that bin and a / 2 in its neighbours."""
    codec = log_mel_codec()
    bin_number = hertz * 512 // 8000
    spectrum = np.zeros(257)
    spectrum[bin_number - 1 : bin_number + 2] = [0.15, 0.3, 0.15]
    expected = codec._filters.numpy() @ spectrum
    seen = magnitudes_of(codec.encode(tone(hertz, 8192, amplitude=0.3))[0, :, 8:-8])
    np.testing.assert_allclose(seen, np.tile(np.maximum(expected, 1e-5)[:, None], seen.shape[1]), atol=2e-4)


@pytest.mark.parametrize("hertz", [200, 440, 1000, 3000])
def test_griffin_lim_keeps_the_pitch_the_level_and_the_picture_of_a_tone(hertz: int) -> None:
    codec = log_mel_codec()
    sine = tone(hertz, 8192)
    again = codec.decode(codec.encode(sine))
    assert abs(np.abs(np.fft.rfft(again)).argmax() * 8000 / 8192 - hertz) < 0.03 * hertz + 10
    assert 0.5 < again.std() / sine.std() < 1.5
    decibels, convergence = decibels_and_convergence(codec, sine)
    assert decibels < 5 and convergence < 0.2


def test_griffin_lim_of_silence_is_silent() -> None:
    codec = log_mel_codec()
    assert np.abs(codec.decode(codec.encode(np.zeros(10, np.float32)))).max() == 0


def test_griffin_lim_keeps_the_picture_of_speech() -> None:
    archive = SHARED_DATA / "audio" / "fsdd.tar.xz"
    if not archive.exists():
        pytest.skip("needs the spoken digits of FSDD beside the checkout, shared/data/audio/fsdd.tar.xz")
    codec = log_mel_codec()
    measured = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(".wav"):
                file = tar.extractfile(member)
                assert file is not None
                measured.append(decibels_and_convergence(codec, codec.decode_payload(file.read())))
            if len(measured) == 12:
                break
    decibels, convergence = np.array(measured).T
    assert decibels.max() < 1.5 and decibels.mean() < 0.8
    assert convergence.max() < 0.2 and convergence.mean() < 0.12
