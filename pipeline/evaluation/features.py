"""Finding the extractor whose features measure samples: the corpus's own, or a network that the spec names.

The corpus's own is trained once on the training split of a prepared set (seconds), on any one worker, kept beside the
set and found again by a hash of its configuration. Everybody who measures on that set uses the same weights, whose hash
goes into the protocol of the score. A score from such a network never carries the name FID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pipeline.data.layout import Layout
from pipeline.data.prepared import Prepared, SplitArrays
from pipeline.data.prompts import prompt_numbers
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
    "can_classify_prompts",
    "can_extract",
    "find_extractors",
    "find_or_train_extractor",
    "find_prompt_classifier",
]

MOST_PROMPTS = 64
"""Different prompts that are classes; where there are more, each is said too seldom to be learned."""


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
    return _classifier(prepared, layout, prepared.load_split, held_out, device, progress, classifier)


def can_classify_prompts(spec: RunSpec, layout: Layout) -> bool:
    """Whether it can be told what a sample says that was asked for by a prompt: few prompts, each its own class."""
    prompt = spec.data.prompt
    return (
        prompt is not None
        and prompt.of == "source"
        and "prompt" in spec.model.condition.on
        and can_extract(layout)
        and 2 <= len(layout.prompts) <= MOST_PROMPTS
    )


def find_prompt_classifier(
    spec: RunSpec, prepared: Prepared, device: torch.device | str = "cpu", progress: Progress = silent
) -> ClassifierExtractor | None:
    """A classifier whose classes are the training split's prompts, in the layout's order; trained and kept as the other
    is. None where there can be none, and where prompts are labels, which the other tells.

    Raises: PreparedDataError when the kept one was changed.
    """
    layout = prepared.layout
    if not can_classify_prompts(spec, layout):
        return None

    def load(split: str) -> SplitArrays:
        arrays = prepared.load_split(split)
        assert arrays.prompt is not None
        return replace(arrays, label=torch.from_numpy(prompt_numbers(arrays.prompt.numpy(), layout.prompts)))

    classes = replace(layout, labels=layout.prompts)
    return _classifier(prepared, classes, load, spec.evaluation.split, device, progress)


def _classifier(
    prepared: Prepared,
    layout: Layout,
    load: Callable[[str], SplitArrays],
    held_out: str,
    device: torch.device | str,
    progress: Progress,
    config: ClassifierConfig | None = None,
) -> ClassifierExtractor:
    """A classifier of the layout's labels, which `load` gives for each split."""
    settings = config or ClassifierConfig()
    name = f"classifier-{settings.digest(layout)}"
    known = _kept(prepared, name, Classifier(layout, settings))
    if known is None:
        network = train_classifier(layout, load("train"), settings, device, progress)
        accuracy = accuracy_of(network, layout, load(held_out), device)
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
