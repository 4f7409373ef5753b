"""The codecs: every layout encodes to what it says, and comes back."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from pipeline.data.codec import CODECS, Codec, codec_from_state, make_codec
from pipeline.errors import CodecError
from pipeline.spec import AnyCodecSpec

SPECS: TypeAdapter[Any] = TypeAdapter(AnyCodecSpec)
PACKINGS = ("windows", "documents")
CODEC_SPECS: list[dict[str, Any]] = [
    *({"kind": kind, "packing": packing, "length": 24} for kind in ("bytes", "characters") for packing in PACKINGS),
    *({"kind": "bpe", "packing": packing, "length": 24, "vocabulary_size": 300} for packing in PACKINGS),
    {"kind": "image", "size": [6, 8]},
    {"kind": "image", "size": [6, 8], "channels": 3},
    {"kind": "raster", "size": [6, 8], "channels": 3, "levels": 7},
    {"kind": "waveform", "num_samples": 2048},
    {"kind": "log_mel", "num_samples": 2048, "num_mels": 32, "hop": 64, "fft": 256},
    {"kind": "mu_law", "num_samples": 2048},
]  # fmt: skip
TEXTS = ["the quick brown fox", "jumps over", "the lazy dog, 春眠不覺曉"]


def codec_of(**spec: Any) -> Codec:
    codec = make_codec(SPECS.validate_python(spec))
    codec.fit(TEXTS)
    return codec


def raw_for(codec: Codec) -> Any:
    if codec.modality == "text":
        return TEXTS[2]
    if codec.modality == "image":
        height, width = codec.spec.size
        shape = (height, width, codec.spec.channels)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seconds = np.arange(codec.spec.num_samples) / codec.spec.sample_rate_hz
    return (0.5 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def wav(samples: np.ndarray, rate: int) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, format="WAV", subtype="PCM_16")
    return sink.getvalue()


def test_every_kind_is_tried_here() -> None:
    assert {spec["kind"] for spec in CODEC_SPECS} == set(CODECS)


@pytest.mark.parametrize("spec", CODEC_SPECS, ids=str)
def test_an_example_has_the_layout_s_shape_type_and_range(spec: dict[str, Any]) -> None:
    codec = codec_of(**spec)
    layout, example = codec.layout(), codec.encode(raw_for(codec))
    assert example.dtype == np.dtype(layout.stored_dtype)
    if not layout.continuous:
        assert example.shape == layout.shape
    model = layout.to_model(torch.from_numpy(example.astype(np.int32) if example.dtype == np.uint16 else example))
    if layout.view == "tokens":
        assert model.min() >= 0 and model.max() < layout.vocabulary
    else:
        assert layout.low <= model.min() and model.max() <= layout.high


@pytest.mark.parametrize("spec", CODEC_SPECS, ids=str)
def test_a_codec_survives_its_state_as_json(spec: dict[str, Any]) -> None:
    codec = codec_of(**spec)
    again = codec_from_state(json.loads(json.dumps(codec.state())))
    raw = raw_for(codec)
    np.testing.assert_array_equal(again.encode(raw), codec.encode(raw))
    assert again.layout(("a", "b")) == codec.layout(("a", "b"))


@pytest.mark.parametrize("spec", CODEC_SPECS, ids=str)
def test_the_same_raw_gives_the_same_file(spec: dict[str, Any]) -> None:
    codec = codec_of(**spec)
    layout = codec.layout()
    model = layout.to_model(torch.from_numpy(codec.encode(raw_for(codec)).astype(np.float32))).numpy()
    files = [codec.to_bytes(codec.decode(model)) for _ in range(2)]
    assert files[0] == files[1]
    if codec.modality != "text":
        codec.decode_payload(files[0])


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_bytes_and_bpe_lose_no_text(kind: str, text: str) -> None:
    codec = codec_of(kind=kind, packing="documents", length=600)
    assert codec.decode(codec.encode(text)) == text
    assert codec.count_unknown(text) == 0


@given(text=st.text("the quick", max_size=40))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("packing", ["windows", "documents"])
def test_known_characters_come_back(packing: str, text: str) -> None:
    codec = codec_of(kind="characters", packing=packing, length=64)
    assert codec.decode(codec.encode(text)).removesuffix("\n") == text


def test_unknown_characters_share_one_symbol_and_are_counted() -> None:
    codec = codec_of(kind="characters")
    assert codec.count_unknown("the ß dog ☃") == 2
    assert codec.decode(codec.encode("ß☃")) == "\ufffd\ufffd\n"


def test_a_rare_character_is_unknown() -> None:
    codec = codec_of(kind="characters", min_count=2)
    assert codec.count_unknown("春") == 1
    with pytest.raises(CodecError, match="min_count"):
        codec_of(kind="characters", min_count=10_000)


def test_a_single_document_has_no_special_token_in_its_stream() -> None:
    codec = make_codec(SPECS.validate_python({"kind": "characters"}), single_document=True)
    codec.fit(["abc"])
    assert codec.encode("abc").tolist() == [0, 1, 2]
    assert codec.layout().end_token is None
    assert codec_from_state(codec.state()).encode("abc").tolist() == [0, 1, 2]


def test_a_document_that_is_cut_has_no_end_token() -> None:
    codec = codec_of(kind="bytes", packing="documents", length=6)
    layout = codec.layout()
    assert codec.encode("abc").tolist() == [layout.begin_token, 97, 98, 99, layout.end_token, layout.pad_token]
    assert codec.encode("abcdefgh").tolist() == [layout.begin_token, 97, 98, 99, 100, 101]


def test_a_large_vocabulary_is_stored_in_two_bytes() -> None:
    codec = make_codec(SPECS.validate_python({"kind": "characters"}))
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 9000)))
    codec.fit([text])
    assert codec.layout().stored_dtype == "uint16"
    assert codec.decode(codec.encode(text)) == text + "\n"


@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3]))
@settings(max_examples=20, deadline=None)
def test_pictures_come_back_exactly(seed: int, channels: int) -> None:
    codec = codec_of(kind="image", size=[5, 7], channels=channels)
    raw = np.random.default_rng(seed).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    stored = torch.from_numpy(codec.encode(raw))
    np.testing.assert_array_equal(codec.decode(codec.layout().to_model(stored).numpy()), raw)
    np.testing.assert_array_equal(codec.decode_payload(codec.to_bytes(raw)), raw)


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_raster_tokens_are_off_by_half_a_step_at_most(levels: int) -> None:
    codec = codec_of(kind="raster", size=[16, 16], levels=levels)
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    error = np.abs(codec.decode(codec.encode(raw)).astype(int) - raw)
    assert error.max() <= np.ceil(255 / (levels - 1) / 2) * (levels < 256)
    assert codec.decode(codec.encode(raw))[0, 0] == 0 and codec.decode(codec.encode(raw))[-1, -1] == 255


def test_a_picture_is_cropped_in_its_centre_and_resized() -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    raw = codec_of(kind="image", size=[4, 4]).decode_payload(png(wide))
    assert raw.shape == (4, 4, 1) and raw.min() > 200


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    pixels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    raw = codec_of(kind="image", size=[8, 8]).decode_payload(png(pixels))
    np.testing.assert_array_equal(raw[..., 0], pixels >> 8)


@given(seed=st.integers(0, 2**32 - 1))
@example(seed=219)  # half a step, and the rounding of single precision on top
@settings(max_examples=20, deadline=None)
def test_waveforms_come_back_within_half_a_step(seed: int) -> None:
    codec = codec_of(kind="waveform", num_samples=64)
    raw = np.random.default_rng(seed).uniform(-1, 1, 64).astype(np.float32)
    again = codec.decode(codec.layout().to_model(torch.from_numpy(codec.encode(raw))).numpy())
    assert np.abs(again.astype(np.float64) - raw).max() <= 0.5 / 32767 + np.finfo(np.float32).eps


def test_mu_law_errs_less_near_silence_than_even_steps_would() -> None:
    codec = codec_of(kind="mu_law", num_samples=1000)
    quiet = np.linspace(-0.02, 0.02, 1000, dtype=np.float32)
    assert np.abs(codec.decode(codec.encode(quiet)) - quiet).max() < 0.25 / 256
    loud = np.linspace(-1, 1, 1000, dtype=np.float32)
    assert np.abs(codec.decode(codec.encode(loud)) - loud).max() < 0.025


def test_mu_law_tokens_come_back_exactly() -> None:
    codec = codec_of(kind="mu_law", num_samples=256)
    np.testing.assert_array_equal(codec.encode(codec.decode(np.arange(256))), np.arange(256))


def test_griffin_lim_keeps_the_pitch_and_the_level_of_a_tone() -> None:
    codec = codec_of(kind="log_mel", num_samples=8192)
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(8192) / 8000)).astype(np.float32)
    again = codec.decode(codec.encode(tone))
    peak_hz = np.abs(np.fft.rfft(again)).argmax() * 8000 / 8192
    assert abs(peak_hz - 1000) < 30
    assert 0.5 < again.std() / tone.std() < 1.5


def test_griffin_lim_of_silence_is_silent() -> None:
    codec = codec_of(kind="log_mel", num_samples=8192)
    assert np.abs(codec.decode(codec.encode(np.zeros(10, np.float32)))).max() == 0


def test_sound_is_mixed_down_resampled_and_fitted() -> None:
    codec = codec_of(kind="waveform", num_samples=8000, sample_rate_hz=8000)
    left = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) * 0.5
    raw = codec.decode_payload(wav(np.stack([left, left], axis=1), 16000))
    assert len(raw) == 8000
    expected = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000) * 0.5
    assert np.abs(raw - expected)[100:-100].max() < 1e-2
    assert codec.encode(raw[:100])[0, 100:].max() == 0


@pytest.mark.parametrize(
    ("spec", "payload", "reason"),
    [
        (
            {"kind": "image", "size": [4, 4]},
            png(np.arange(1600, dtype=np.uint8).reshape(40, 40))[:60],
            "not a readable picture",
        ),
        ({"kind": "image", "size": [4, 4]}, b"", "no known picture format"),
        ({"kind": "image", "size": [4, 4]}, b"hello, I am text", "no known picture format"),
        ({"kind": "waveform"}, b"", "not a readable sound"),
        ({"kind": "waveform"}, b"RIFF\x00\x00\x00\x00WAVEfmt ", "not a readable sound"),
        ({"kind": "waveform"}, np.array([0.0, np.nan]), "not finite"),
        ({"kind": "characters"}, "caf\xe9".encode("latin-1"), "not UTF-8 text: byte 0xe9 at 3"),
    ],
)
def test_what_cannot_be_decoded_says_why(spec: dict[str, Any], payload: Any, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        codec_of(**spec).decode_payload(payload)


def test_a_png_cut_anywhere_is_refused() -> None:
    codec = codec_of(kind="image", size=[4, 4])
    whole = png(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for stop in range(0, len(whole) - 20, 7):
        with pytest.raises(CodecError):
            codec.decode_payload(whole[:stop])


def test_log_mel_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CodecError, match="hop"):
        codec_of(kind="log_mel", hop=400, fft=512)


def test_a_state_of_something_else_is_refused() -> None:
    with pytest.raises(CodecError, match="not the state of a codec"):
        codec_from_state({"spec": {"kind": "morse"}})
