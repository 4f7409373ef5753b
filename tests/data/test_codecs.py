"""The codecs: every layout encodes to what it says, every state comes back, and what cannot be decoded says why."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tiny_codecs import CODEC_SPECS, codec_of, picture_file, raw_for, tone

from pipeline.data.codec import CODECS, codec_from_state
from pipeline.errors import CodecError


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
    assert again.state() == codec.state()


@pytest.mark.parametrize("spec", CODEC_SPECS, ids=str)
def test_the_same_raw_gives_the_same_file(spec: dict[str, Any]) -> None:
    codec = codec_of(**spec)
    layout = codec.layout()
    model = layout.to_model(torch.from_numpy(codec.encode(raw_for(codec)).astype(np.float32))).numpy()
    files = [codec.to_bytes(codec.decode(model)) for _ in range(2)]
    assert files[0] == files[1]
    if codec.modality != "text":
        codec.decode_payload(files[0])


@pytest.mark.parametrize("spec", CODEC_SPECS, ids=str)
def test_a_batch_is_encoded_as_its_records_one_by_one(spec: dict[str, Any]) -> None:
    codec = codec_of(**spec)
    raws = [raw_for(codec)] * 2
    if codec.modality == "text":
        raws = ["", "the <|user|><|system|> dog", "", raws[0], "a text that is far longer than twenty-four tokens", ""]
    batch = codec.encode_batch(raws)
    assert len(batch) == len(raws)
    for example, raw in zip(batch, raws, strict=True):
        np.testing.assert_array_equal(example, codec.encode(raw))
    assert codec.encode_batch([]) == []


@pytest.mark.parametrize("spec", CODEC_SPECS, ids=str)
def test_a_payload_is_opened_shaped_and_encoded(spec: dict[str, Any]) -> None:
    codec = codec_of(**spec)
    payload = codec.to_bytes(raw_for(codec))
    pieces = codec.shape(codec.open(payload).raw, "00ff")
    np.testing.assert_array_equal(pieces[0], codec.decode_payload(payload))
    codec.encode(pieces[0])


@pytest.mark.parametrize(
    ("spec", "payload"),
    [
        ({"kind": "bytes"}, b"x" * 101),
        ({"kind": "bytes"}, "\u6625" * 34),
        ({"kind": "image", "size": [4, 4]}, np.zeros((11, 10), np.uint8)),
        ({"kind": "image", "size": [4, 4]}, picture_file(np.zeros((11, 10), np.uint8))),
        ({"kind": "waveform"}, tone(440, 26)),
    ],
)
def test_a_record_over_the_limit_is_refused_and_one_at_it_is_not(spec: dict[str, Any], payload: Any) -> None:
    codec = codec_of(**spec)
    with pytest.raises(CodecError, match=r"more than the 0\.0 MiB that a record may; raise data\.max_record_megabytes"):
        codec.open(payload, max_bytes=100)
    codec.open(payload, max_bytes=110)


@pytest.mark.parametrize(
    ("spec", "payload", "reason"),
    [
        (
            {"kind": "image", "size": [4, 4]},
            picture_file(np.arange(1600).reshape(40, 40).astype(np.uint8))[:60],
            "not a readable picture",
        ),
        ({"kind": "image", "size": [4, 4]}, b"", "no known picture format"),
        ({"kind": "image", "size": [4, 4]}, b"hello, I am text", "no known picture format"),
        ({"kind": "image", "size": [4, 4]}, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known picture"),
        ({"kind": "image", "size": [4, 4]}, np.zeros((4, 4)), "float64 .4, 4. is no picture"),
        ({"kind": "waveform"}, b"", "not a readable sound"),
        ({"kind": "waveform"}, b"RIFF\x00\x00\x00\x00WAVEfmt ", "not a readable sound"),
        ({"kind": "waveform"}, np.array([0.0, np.nan]), "not finite"),
        ({"kind": "waveform"}, np.array(["a"]), "is no sound"),
        ({"kind": "characters"}, "caf\xe9".encode("latin-1"), "not UTF-8 text: byte 0xe9 at 3"),
        ({"kind": "bytes"}, "ab\ud800", "half a surrogate pair, U[+]D800, at 2"),
    ],
)
def test_what_cannot_be_decoded_says_why(spec: dict[str, Any], payload: Any, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        codec_of(**spec).decode_payload(payload)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"kind": "log_mel", "hop": 400, "fft": 512}, "hop"),
        ({"kind": "waveform", "sample_rate_hz": 2000, "loudness_lufs": -20}, "measured at 4000 Hz and more"),
        ({"kind": "bpe", "vocabulary_size": 300, "special_tokens": [f"<{i}>" for i in range(44)]}, "leaves 255"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        codec_of(**spec)


def test_a_state_of_something_else_is_refused() -> None:
    with pytest.raises(CodecError, match="not the state of a codec"):
        codec_from_state({"spec": {"kind": "morse"}})
