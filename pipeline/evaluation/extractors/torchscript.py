"""A network from a TorchScript file as an extractor: an Inception, a VGGish, a DINOv2, whoever brings its weights.

The file's bytes are compared with the checksum in the spec before anything reads them, and kept in the prepared set so
that every worker has them. Plain PyTorch, on any worker.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.layout import Layout
from pipeline.data.prepared import Prepared
from pipeline.errors import SpecError, StorageError
from pipeline.spec import NetworkInputSpec, TorchScriptExtractorSpec
from pipeline.storage import open_store

FOLDER = "extractors"


class TorchScriptExtractor:
    """A scripted network as an `Extractor`; its name says the file and how examples are put in."""

    accuracy = None

    def __init__(
        self,
        network: torch.jit.ScriptModule,
        layout: Layout,
        spec: TorchScriptExtractorSpec,
        device: torch.device | str,
    ) -> None:
        self.network, self.layout, self.spec, self.device = network.eval(), layout, spec, torch.device(device)
        self.name = f"torchscript {PurePosixPath(spec.path).name}, {described(spec.input, layout)}"
        self.sha256 = spec.sha256

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Features `[N, D]` float64 of examples `[N, C, *space]`.

        Raises: SpecError when the network does not take them or gives anything else than one row for each.
        """
        batch = as_input(x, self.layout, self.spec.input).to(self.device)
        try:
            # The optimising executor fuses after a few calls, and rounds otherwise then than before.
            with torch.jit.optimized_execution(False):
                found = self.network(batch)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise SpecError(
                f"{self.spec.path}: the network does not take floats {list(batch.shape)} ({last}); mend "
                "evaluation.extractor.input"
            ) from error
        if not isinstance(found, Tensor) or found.shape[:1] != x.shape[:1] or not found.is_floating_point():
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise SpecError(
                f"{self.spec.path}: the network gives {shape} for {len(x)} examples, an extractor gives floats "
                f"[{len(x)}, D]; script one that returns its features"
            )
        return found.flatten(1).double()


def find_torchscript(
    spec: TorchScriptExtractorSpec, prepared: Prepared, device: torch.device | str = "cpu"
) -> TorchScriptExtractor:
    """The network of `spec` from the prepared set, where it is put at the first call.

    Raises: SpecError when the file is not there, has another checksum, is no TorchScript, or does not go with the
    corpus's signals.
    """
    _check_input(spec, prepared.layout)
    kept = (FOLDER, f"{spec.sha256}.pt")
    if prepared.store.exists(*kept):
        where, data = prepared.store.path(*kept), prepared.store.read_bytes(*kept)
    else:
        where, data = spec.path, _read(spec.path)
    seen = hashlib.sha256(data).hexdigest()
    if seen != spec.sha256:
        raise SpecError(
            f"{where}: sha256 {seen}, evaluation.extractor.sha256 is {spec.sha256}: these are other weights, which are "
            "not loaded; fetch the file again, or correct the checksum"
        )
    try:
        network = torch.jit.load(io.BytesIO(data), map_location=device)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise SpecError(f"{where}: not a TorchScript file ({first}); save one with torch.jit.script(…).save") from None
    if not prepared.store.exists(*kept):
        prepared.store.write_bytes(data, *kept)
    return TorchScriptExtractor(network, prepared.layout, spec, device)


def _read(path: str) -> bytes:
    folder, _, name = path.rpartition("/")
    store = open_store(folder or ("/" if path.startswith("/") else "."))
    try:
        if store.exists(name):
            return store.read_bytes(name)
    except StorageError as error:
        raise SpecError(f"evaluation.extractor.path {path}: cannot be read: {error}") from None
    raise SpecError(
        f"evaluation.extractor.path {path}: there is no such file; put the network's weights there, or set "
        "evaluation.extractor.kind to 'corpus'"
    )


def _check_input(spec: TorchScriptExtractorSpec, layout: Layout) -> None:
    if layout.modality == "audio":
        if len(layout.space) != 1 or spec.input.sample_rate_hz is None:
            raise SpecError(
                "evaluation.extractor: a network takes sound as waveforms, at the evaluation.extractor.input."
                f"sample_rate_hz that it asks for; this codec makes {list(layout.shape)} and the rate is "
                f"{spec.input.sample_rate_hz}. Take data.codec.kind 'waveform', or kind 'corpus'"
            )
    elif spec.input.channels != layout.channels and layout.channels != 1:
        raise SpecError(
            f"evaluation.extractor.input.channels {spec.input.channels}: the pictures have {layout.channels}; only "
            "grey ones are repeated"
        )


def described(how: NetworkInputSpec, layout: Layout) -> str:
    """How examples are put in, in a few words for the protocol."""
    if layout.modality == "audio":
        return f"{how.sample_rate_hz} Hz"
    height, width = how.size or layout.space
    numbers = " ".join(f"{value:g}" for value in (*how.mean, *how.deviation))
    return f"{height}×{width}×{how.channels} bilinear, mean and deviation {numbers}"


def as_input(x: Tensor, layout: Layout, how: NetworkInputSpec) -> Tensor:
    """Examples `[N, C, *space]` in the model's representation as a network takes them: see `NetworkInputSpec`."""
    x = x.float().clamp(layout.low, layout.high).cpu()
    if layout.modality == "audio":
        import soxr

        rate = layout.sample_rate_hz or how.sample_rate_hz
        sounds = [soxr.resample(sound, rate, how.sample_rate_hz) for sound in x[:, 0].numpy()]
        return torch.from_numpy(np.stack(sounds))
    x = (x - layout.low) / (layout.high - layout.low)
    if how.size is not None and tuple(how.size) != tuple(x.shape[2:]):
        x = F.interpolate(x, size=how.size, mode="bilinear", antialias=True, align_corners=False)
    if x.shape[1] != how.channels:
        x = x.expand(-1, how.channels, -1, -1)
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (how.mean, how.deviation))
    return (x - mean) / deviation
