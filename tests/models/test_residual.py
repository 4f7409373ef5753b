"""Residual networks fit any extent, in one and two dimensions, and do not look over the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.backbones import make_decoder, make_encoder
from pipeline.spec import ConvBackboneSpec, MlpBackboneSpec, ResnetBackboneSpec

BACKBONES = {
    "mlp": MlpBackboneSpec(kind="mlp", hidden=(8, 8)),
    "conv": ConvBackboneSpec(kind="conv", channels=(4, 8)),
    "resnet": ResnetBackboneSpec(kind="resnet", channels=(4, 8), blocks=2, norm="group"),
}


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
@given(st.lists(st.integers(3, 13), min_size=1, max_size=2), st.integers(1, 3), st.integers(0, 4))
def test_a_signal_of_any_extent_goes_in_and_comes_out(
    backbone: MlpBackboneSpec | ConvBackboneSpec | ResnetBackboneSpec, space: list[int], channels: int, size: int
) -> None:
    shape = (channels, *space)
    encoder = make_encoder(shape, backbone, 5, condition_size=size)
    x = torch.randn(2, *shape)
    outputs = encoder(x, torch.randn(2, size) if size else None)
    assert outputs.shape == (2, 5)
    assert encoder.features(x).shape == (2, encoder.num_features)
    assert make_decoder(3, backbone, shape)(torch.randn(2, 3)).shape == (2, *shape)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_an_example_is_seen_the_same_in_any_batch(
    backbone: MlpBackboneSpec | ConvBackboneSpec | ResnetBackboneSpec,
) -> None:
    torch.manual_seed(0)
    encoder, decoder = make_encoder((1, 8, 8), backbone, 5), make_decoder(3, backbone, (1, 8, 8))
    x, z = torch.randn(4, 1, 8, 8), torch.randn(4, 3)
    torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]))
    torch.testing.assert_close(decoder(z)[:1], decoder(z[:1]))


def test_a_condition_moves_what_an_encoder_gives() -> None:
    torch.manual_seed(0)
    encoder = make_encoder((1, 8, 8), BACKBONES["resnet"], 5, condition_size=2)  # type: ignore[arg-type]
    x = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)
    one, other = encoder(x, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert not torch.allclose(one, other)
