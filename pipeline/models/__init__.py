"""The families, and how a spec and a layout become a model."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.data.layout import Layout
from pipeline.models.base import GenerativeModel, derive_seed
from pipeline.models.gan import GenerativeAdversarialNetwork
from pipeline.models.rnn import RecurrentLanguageModel
from pipeline.models.vae_signals import SignalVae
from pipeline.models.vae_tokens import TokenVae
from pipeline.spec import RunSpec

FAMILIES: dict[tuple[str, str], Any] = {
    ("rnn", "tokens"): RecurrentLanguageModel,
    ("vae", "signal"): SignalVae,
    ("vae", "tokens"): TokenVae,
    ("gan", "signal"): GenerativeAdversarialNetwork,
    ("gan", "tokens"): GenerativeAdversarialNetwork,
}


def build_model(spec: RunSpec, layout: Layout) -> GenerativeModel:
    """The model that `spec` asks for over examples of `layout`, initialised from the spec's seed alone."""
    family = FAMILIES[spec.model.family.kind, layout.view]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(spec.seed, "initialisation"))
        model: GenerativeModel = family(layout, spec.model.family, spec.model.backbone, spec.model.condition)
    model.importance_samples = spec.evaluation.nll_samples
    return model
