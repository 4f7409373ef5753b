"""Finding the extractor whose features measure samples: the corpus's own, or a network that the spec names.

The corpus's own is trained once on the training split of a prepared set (seconds), on any one worker, kept beside the
set and found again by a hash of its configuration. Everybody who measures on that set uses the same weights, whose hash
goes into the protocol of the score. A score from such a network never carries the name FID.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any, Protocol

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pipeline.data.layout import Layout
from pipeline.data.prepared import Prepared
from pipeline.errors import PreparedDataError
from pipeline.evaluation.extractors.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    AutoencoderExtractor,
    train_autoencoder,
)
from pipeline.evaluation.extractors.classifier import (
    Classifier,
    ClassifierConfig,
    ClassifierExtractor,
    accuracy_of,
    train_classifier,
)
from pipeline.evaluation.extractors.encoder import STAGE, Encoder, Network
from pipeline.evaluation.extractors.torchscript import FOLDER, find_torchscript
from pipeline.progress import Progress, silent
from pipeline.spec import CorpusExtractorSpec, RunSpec

__all__ = [
    "FOLDER",
    "STAGE",
    "AutoencoderConfig",
    "AutoencoderExtractor",
    "Classifier",
    "ClassifierConfig",
    "ClassifierExtractor",
    "Extractor",
    "can_classify",
    "can_extract",
    "find_extractors",
    "find_or_train_extractor",
]


class Extractor(Protocol):
    """Maps examples in the model's representation to features `[N, D]` float64; named, and known by its hash."""

    name: str
    sha256: str

    @property
    def accuracy(self) -> float | None:
        """Of held-out examples, the share whose class it tells; None for a network that tells none."""

    def features(self, x: Tensor) -> Tensor: ...


CorpusExtractor = ClassifierExtractor | AutoencoderExtractor


def can_extract(layout: Layout) -> bool:
    """Whether there are features of the examples: signals in one or two dimensions."""
    return layout.view == "signal" and len(layout.space) in (1, 2)


def can_classify(layout: Layout) -> bool:
    """Whether the corpus allows a classifier: such signals with two labels or more."""
    return can_extract(layout) and len(layout.labels) >= 2


def find_extractors(
    spec: RunSpec, prepared: Prepared, device: torch.device | str = "cpu", progress: Progress = silent
) -> tuple[Extractor | None, ClassifierExtractor | None]:
    """The extractor that `evaluation.extractor` asks for, and the corpus's classifier; None where there is none.

    Raises: PreparedDataError when a kept one was changed, SpecError when a named network is not there or not the one.
    """
    wanted = spec.evaluation.extractor
    if not can_extract(prepared.layout):
        return None, None
    named = None if isinstance(wanted, CorpusExtractorSpec) else find_torchscript(wanted, prepared, device)
    own = None
    if named is None or can_classify(prepared.layout):
        own = find_or_train_extractor(prepared, spec.evaluation.split, device, progress)
    return named or own, own if isinstance(own, ClassifierExtractor) else None


def find_or_train_extractor(
    prepared: Prepared,
    held_out: str = "test",
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    classifier: ClassifierConfig | None = None,
    autoencoder: AutoencoderConfig | None = None,
) -> CorpusExtractor | None:
    """The corpus's own extractor, trained and kept in the prepared set at the first call; None where there can be none.

    Its classifier where it has labels, else its autoencoder. Raises: PreparedDataError when the kept one was changed.
    """
    layout = prepared.layout
    if not can_extract(layout):
        return None
    if not can_classify(layout):
        config = autoencoder or AutoencoderConfig()
        name = f"autoencoder-{config.digest(layout)}"
        found = _kept(prepared, name, Autoencoder(layout, config))
        if found is None:
            trained = train_autoencoder(layout, prepared.load_split("train"), config, device, progress)
            found = trained, _keep(prepared, name, trained, {"config": asdict(config)})
        return AutoencoderExtractor(found[0].to(device), layout, name, found[1]["sha256"])
    settings = classifier or ClassifierConfig()
    name = f"classifier-{settings.digest(layout)}"
    known = _kept(prepared, name, Classifier(layout, settings))
    if known is None:
        network = train_classifier(layout, prepared.load_split("train"), settings, device, progress)
        accuracy = accuracy_of(network, layout, prepared.load_split(held_out), device)
        facts = {"accuracy": accuracy, "held_out": held_out, "config": asdict(settings)}
        known = network, _keep(prepared, name, network, facts)
    return ClassifierExtractor(known[0].to(device), layout, name, known[1]["sha256"], known[1]["accuracy"])


def _kept(prepared: Prepared, name: str, network: Network) -> tuple[Network, dict[str, Any]] | None:
    """`network` with the weights that are kept under `name` and their facts; None when there are none yet."""
    weights_path, facts_path = (FOLDER, f"{name}.safetensors"), (FOLDER, f"{name}.json")
    if not prepared.store.exists(*facts_path):
        return None
    facts: dict[str, Any] = prepared.store.read_json(*facts_path)
    data = prepared.store.read_bytes(*weights_path)
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise PreparedDataError(
            f"{prepared.store.path(*weights_path)}: its sha256 is not the one in {name}.json: it was changed. "
            "Delete the folder 'extractors' and evaluate again"
        )
    network.load_state_dict(load_tensors(data))
    return network, facts


def _keep(prepared: Prepared, name: str, network: Encoder, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the weights and then their facts, which are returned with the weights' sha256."""
    data = save_tensors({key: value.contiguous().cpu() for key, value in network.state_dict().items()})
    facts = {"sha256": hashlib.sha256(data).hexdigest(), **facts}
    prepared.store.write_bytes(data, FOLDER, f"{name}.safetensors")
    prepared.store.write_json(facts, FOLDER, f"{name}.json")
    return facts
