from __future__ import annotations

import pytest
from tiny_bundles import MODALITIES, tiny_manifest, tiny_spec

from pipeline.evaluation.metric import Score
from pipeline.release.card import model_card


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_card_states_the_licence_the_corpus_and_the_scores(modality: str) -> None:
    spec = tiny_spec(modality)
    card = model_card(
        spec,
        tiny_manifest(spec),
        {"test/nll_nats": Score(86.2512, "nats per example", "lower", {"split": "test"}, (85.1, 87.4))},
    )
    assert card.startswith(f"# {spec.name}\n")
    assert "CC0-1.0" in card
    assert "train 90, validation 0, test 10" in card
    assert (
        "| `test/nll_nats` Negative log-likelihood | 86.251 nats per example | 85.1 to 87.4 | lower | split test |"
        in card
    )


def test_a_card_without_a_licence_asks_for_one() -> None:
    spec = tiny_spec("image")
    manifest = tiny_manifest(spec)
    manifest["corpus"]["licence"] = None
    assert "find out before you publish" in model_card(spec, manifest, {})
