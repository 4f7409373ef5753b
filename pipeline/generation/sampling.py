"""Bundles and what is drawn from them: a model's weights, spec and manifest as one checked folder.

Training writes a bundle, the registry keeps it, evaluation and generation load it and draw raw examples: texts,
pictures or sounds. Plain PyTorch, in whichever process needs it.

    bundle/model.safetensors · spec.json · manifest.json · checksums.json (written last)
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.data.codec import Codec, codec_from_state
from pipeline.data.layout import Layout, Modality
from pipeline.data.manifest import Manifest
from pipeline.errors import AtelierError, PreparedDataError, RegistryError, SpecError
from pipeline.generation.asking import part_of
from pipeline.models import build_model
from pipeline.models.base import GenerativeModel, SamplingOptions, make_generator
from pipeline.progress import Progress, silent
from pipeline.spec import RunSpec, make_spec
from pipeline.storage import open_store

FORMAT_VERSION = 1
WEIGHTS, SPEC, MANIFEST, CHECKSUMS = "model.safetensors", "spec.json", "manifest.json", "checksums.json"

Raw = Any
"""One generated example: a string, a picture uint8 `[H, W, C]`, or mono sound float32 `[T]` in [-1, 1]."""


@dataclass(frozen=True)
class Bundle:
    """A model ready to draw from, with everything that says where it comes from."""

    spec: RunSpec
    codec: Codec
    layout: Layout
    model: GenerativeModel
    manifest: dict[str, Any]
    weights_sha256: str
    device: torch.device


# --- the folder -----------------------------------------------------------------------------------------------


def save_bundle(folder: Path, spec: RunSpec, manifest: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Path:
    """Write a bundle. The checksums come last, so that a folder without them is known to be incomplete.

    `weights` are the model's `state_dict` (or its average), `manifest` that of the prepared set as a dict. Equal
    arguments give equal bytes. Raises: StorageError (a full disk, permissions).
    """
    store = open_store(str(folder))
    store.make_dir()
    # A view of a larger tensor, or two names of one, would be refused: every tensor is written on its own.
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in weights.items()}
    files = {WEIGHTS: safetensors.torch.save(tensors), SPEC: _json(spec.as_dict()), MANIFEST: _json(dict(manifest))}
    for name, data in files.items():
        store.write_bytes(data, name)
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    store.write_bytes(_json({"format_version": FORMAT_VERSION, "sha256": checksums}), CHECKSUMS)
    return Path(store.root)


def load_bundle(folder: Path | str, device: torch.device | str = "cpu") -> Bundle:
    """The model in `folder`, in evaluation mode on `device`.

    Raises: RegistryError when the folder is no bundle, a file differs from its checksum, or the weights do not
    fit the model that the spec describes.
    """
    folder = Path(folder)
    files, checksums = read_checked(folder)
    try:
        spec = make_spec(json.loads(files[SPEC]), where=str(folder / SPEC))
        manifest = json.loads(files[MANIFEST])
        prepared = Manifest.from_dict(manifest, str(folder / MANIFEST))
        codec, layout = codec_from_state(prepared.codec), Layout.from_dict(prepared.layout)
        model = build_model(spec, layout)
        model.load_state_dict(safetensors.torch.load(files[WEIGHTS]))
    except PreparedDataError as error:  # says what to do by itself
        raise RegistryError(f"{folder}: this version of Atelier cannot build the model: {error}") from error
    except (AtelierError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise RegistryError(
            f"{folder}: this version of Atelier cannot build the model: {error}; train it again, or load it with the "
            "version that made it"
        ) from error
    device = torch.device(device)
    model.to(device).eval().requires_grad_(False)
    return Bundle(spec, codec, layout, model, manifest, checksums[WEIGHTS], device)


def read_checked(folder: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """The contents and the checksums of a bundle's files, the ones checked against the others.

    Raises: RegistryError when a file is missing or was changed.
    """
    if not (folder / CHECKSUMS).is_file():
        raise RegistryError(f"{folder}: not a complete bundle, there is no {CHECKSUMS}; give the folder of a model")
    try:
        record = json.loads((folder / CHECKSUMS).read_bytes())
        version, checksums = record["format_version"], dict(record["sha256"])
        files = {name: (folder / name).read_bytes() for name in (WEIGHTS, SPEC, MANIFEST)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{folder}: the bundle cannot be read ({error}); fetch or train the model again") from None
    if version != FORMAT_VERSION:
        raise RegistryError(
            f"{folder}: the bundle has format {version}, this version of Atelier reads {FORMAT_VERSION}; load it with "
            "the version that made it"
        )
    for name, data in files.items():
        seen = hashlib.sha256(data).hexdigest()
        if seen != checksums.get(name):
            raise RegistryError(
                f"{folder / name}: sha256 {seen[:12]}…, {CHECKSUMS} says {str(checksums.get(name))[:12]}…: the file "
                "was changed after training and is not loaded; fetch or train the model again"
            )
    return files, checksums


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True).encode()


# --- drawing --------------------------------------------------------------------------------------------------


def draw(
    bundle: Bundle,
    count: int,
    seed: int,
    options: SamplingOptions | None = None,
    batch_size: int = 64,
    progress: Progress = silent,
) -> list[Raw]:
    """`count` raw examples; a prompt in `options` that is continued stands at the start of each text.

    A function of (bundle, count, seed, options, batch_size) on one kind of device: the same call gives the same
    examples; another `batch_size` gives others. Raises: SpecError on a count or an option out of its range,
    RegistryError when the model gives values that are not finite.
    """
    options = options or SamplingOptions()
    check_options(options, count)
    each = isinstance(options.asked_label, tuple) and len(options.asked_label)
    assert not each or each == count, f"{each} labels for {count} samples"
    prompt = np.array(options.prompt, dtype=np.int64)
    raws: list[Raw] = []
    with torch.inference_mode():
        for chunk, first in enumerate(range(0, count, batch_size)):
            generator = make_generator(seed, "sample", chunk, device=bundle.device)
            size = min(batch_size, count - first)
            examples = bundle.model.sample(size, generator, part_of(options, first, first + size)).cpu()
            if examples.is_floating_point() and not bool(torch.isfinite(examples).all()):
                raise RegistryError("the model gives values that are not finite: its weights are broken; train again")
            for example in examples.numpy():
                raws.append(bundle.codec.decode(np.concatenate([prompt, example]) if len(prompt) else example))
            progress("generate", len(raws), count, "")
    return raws


def encode_prompt(bundle: Bundle, text: str, options: SamplingOptions | None = None) -> SamplingOptions:
    """`options` with `text` as the prompt that every sample continues.

    Raises: SpecError when the model takes no prompt, knows not all of its characters, or has no room after it.
    """
    options = options or SamplingOptions()
    if bundle.layout.modality != "text" or bundle.spec.model.family.kind != "rnn":
        raise SpecError(
            f"prompt {text!r}: a {bundle.spec.model.family.kind} of {bundle.layout.modality} continues no prompt; only "
            "an rnn of text does; leave the prompt out"
        )
    if unknown := bundle.codec.count_unknown(text):
        raise SpecError(f"prompt {text!r}: {unknown} of its characters were never seen in training; leave them out")
    layout = bundle.layout
    special = {layout.begin_token, layout.end_token, layout.pad_token}
    tokens = tuple(token for token in bundle.codec.encode(text).tolist() if token not in special)
    if not layout.continuous and len(tokens) >= layout.length - (layout.begin_token is not None):
        raise SpecError(
            f"prompt {text[:40]!r}…: {len(text)} characters fill the {layout.length} tokens of an example; shorten it"
        )
    return replace(options, prompt=tokens)


def check_options(options: SamplingOptions, count: int = 1) -> None:
    """Raises: SpecError, with all mistakes, on a count or an option out of its range."""
    mistakes = [
        f"{name} {value}: {allowed}"
        for name, value, allowed, holds in (
            ("count", count, "at least 1", count >= 1),
            ("temperature", options.temperature, "above 0, and finite", 0 < options.temperature < float("inf")),
            ("top_k", options.top_k, "at least 1", options.top_k is None or options.top_k >= 1),
            ("top_p", options.top_p, "above 0, at most 1", options.top_p is None or 0 < options.top_p <= 1),
            ("length", options.length, "at least 1", options.length is None or options.length >= 1),
        )
        if not holds
    ]
    if mistakes:
        raise SpecError("what to generate is not possible: " + "; ".join(mistakes))


# --- looking --------------------------------------------------------------------------------------------------


def overview(raws: Sequence[Raw], modality: Modality, sample_rate_hz: int | None = None) -> bytes | None:
    """One PNG of the first examples: pictures (up to 64) as a grid, sounds (up to 8) as waveform and spectrogram.

    None for text, and when there is nothing to show. The same examples give the same bytes.
    """
    if not raws or modality == "text":
        return None
    if modality == "image":
        return _grid_of_pictures(list(raws[:64]))
    assert sample_rate_hz is not None
    return _waveforms(list(raws[:8]), sample_rate_hz)


def _grid_of_pictures(pictures: list[np.ndarray]) -> bytes:
    """Pictures uint8 `[H, W, C]` side by side, small ones enlarged by a whole factor to about 64 pixels."""
    from PIL import Image

    height, width, channels = pictures[0].shape
    columns = min(len(pictures), max(1, round(len(pictures) ** 0.5)))
    rows = -(-len(pictures) // columns)
    factor, gap = max(1, 64 // max(height, width)), 2
    cell_height, cell_width = height * factor + gap, width * factor + gap
    sheet = np.full((rows * cell_height + gap, columns * cell_width + gap, channels), 128, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * cell_height + gap, (i % columns) * cell_width + gap
        enlarged = picture.repeat(factor, axis=0).repeat(factor, axis=1)
        sheet[top : top + height * factor, left : left + width * factor] = enlarged
    buffer = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet).save(buffer, format="PNG")
    return buffer.getvalue()


def _waveforms(sounds: list[np.ndarray], sample_rate_hz: int) -> bytes:
    """Sounds float32 `[T]`, one a row: the waveform on the left, its spectrogram in decibels on the right."""
    # Imported here: half a second that drawing samples does not need. `Figure` without pyplot keeps no state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.3 * len(sounds) + 0.5), dpi=100, layout="constrained")
    axes = figure.subplots(len(sounds), 2, squeeze=False)
    for row, sound in zip(axes, sounds, strict=True):
        seconds = len(sound) / sample_rate_hz
        row[0].plot(np.arange(len(sound)) / sample_rate_hz, sound, linewidth=0.5)
        row[0].set(xlim=(0, seconds), ylim=(-1, 1), yticks=[-1, 0, 1])
        decibels = _spectrogram(sound)
        extent = (0, seconds, 0, sample_rate_hz / 2000)
        row[1].imshow(decibels, origin="lower", aspect="auto", extent=extent, vmin=-80, vmax=0, cmap="magma")
        row[1].set_ylabel("kHz")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _spectrogram(sound: np.ndarray, window: int = 256, hop: int = 64) -> np.ndarray:
    """Hann-windowed magnitudes of a sound `[T]` in decibels below its loudest, `[window / 2 + 1, frames]`."""
    padded = np.pad(sound.astype(np.float64), (0, max(0, window - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    magnitude = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)).T
    decibels: np.ndarray = 20 * np.log10(np.maximum(magnitude / max(float(magnitude.max()), 1e-9), 1e-4))
    return decibels
