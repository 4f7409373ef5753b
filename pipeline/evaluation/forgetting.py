"""Forgetting: the corpus that a donor was trained on, scored again by the model that began with its weights.

Plain PyTorch and, for pictures and sounds of a GAN, what `evaluate` takes; on the driver, after a training. The donor's
held-out examples are read by both models, by each through its own codec: where the codecs differ, texts are decoded
and encoded anew, and are compared by the bits of a character. A character that the heir's vocabulary lacks costs it
as much as telling it from all others that it lacks (see `compare`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.characters import CharactersCodec
from pipeline.data.codec import Codec
from pipeline.data.layout import Layout
from pipeline.data.prepared import Prepared, SplitArrays
from pipeline.data.text import TextCodec
from pipeline.errors import AtelierError
from pipeline.evaluation.evaluate import measure
from pipeline.evaluation.likelihood import Likelihood
from pipeline.evaluation.metric import Score, Scores, Subject
from pipeline.generation.sampling import Bundle, load_bundle
from pipeline.progress import Progress, silent
from pipeline.spec import RunSpec

MOST_ROWS = 2000
"""Held-out rows of the donor's corpus that are read: enough for a difference, whatever the corpus's size."""


@dataclass(frozen=True)
class Reading:
    """Held-out examples as one model reads them: their split's entry, and the nats to charge it in all."""

    arrays: SplitArrays
    split: dict[str, Any]
    surcharge_nats: float = 0.0


def forgetting(spec: RunSpec, old: Prepared, donor: Path, heir: Path, progress: Progress = silent) -> Scores:
    """Scores of the held-out examples of the donor's set `old` before and after, and what was forgotten, under
    `forgetting/<measure>_before`, `_after` and `_forgotten`; under `refused` why there are none.

    `donor` and `heir` are the folders of their bundles. At most MOST_ROWS rows are read, in this process; a GAN is
    scored by the Fréchet distance of its samples to them. Raises: PreparedDataError, RegistryError.
    """
    models = {"before": load_bundle(donor), "after": load_bundle(heir)}
    kinds: set[str] = {bundle.spec.model.family.kind for bundle in models.values()}
    name = _measure_of(old.layout, kinds)
    why: str | None = None
    if name is None:
        why = f"a {' and a '.join(sorted(kinds))} give no score in common"
    elif name != "bits_per_char" and _form_of(models["before"]) != _form_of(models["after"]):
        why = "the two models are of examples of another form, or see them in another way: their scores do not compare"
    elif not old.manifest.splits.get(spec.evaluation.split, {}).get("rows"):
        why = f"the set {old.key} has no examples in its split {spec.evaluation.split!r}"
    scores: dict[str, Score] = {}
    if why is None and name is not None:
        for done, (when, bundle) in enumerate(models.items()):
            progress("forgetting", done, len(models), f"the corpus of set {old.key}, {when}")
            try:
                if name == "frechet":
                    scores[when] = measure(spec, old, {"before": donor, "after": heir}[when], [name])[name].score
                else:
                    scores[when] = _likelihood(spec, old, bundle)[name]
            except AtelierError as error:
                why = f"{when}: {error}"
                break
        progress("forgetting", len(models), len(models), f"the corpus of set {old.key}")
    if why is not None or name is None:
        return Scores(refused={"forgetting": f"Forgetting: {why}"})
    before, after = scores["before"], scores["after"]
    lost = Score(after.value - before.value, before.unit, before.better, before.protocol)
    told = {"before": before, "after": after, "forgotten": lost}
    return Scores({f"forgetting/{name}_{when}": score for when, score in told.items()})


def _measure_of(layout: Layout, kinds: set[str]) -> str | None:
    """The score that models of these families have in common over examples of a layout."""
    if "gan" in kinds:
        return "frechet" if kinds == {"gan"} and layout.view == "signal" else None
    if layout.modality == "text":
        return "bits_per_char"
    if len(kinds) > 1:
        return None
    return "nats_per_token" if kinds == {"rnn"} else "nll_nats"


def _form_of(bundle: Bundle) -> tuple[Any, ...]:
    """What the probabilities of a model are of: the numbers of its examples, and what a VAE makes of them."""
    layout, family = bundle.layout, bundle.spec.model.family
    seen = [getattr(family, key, None) for key in ("likelihood", "binarise")]
    return (layout.view, layout.shape, layout.vocabulary, layout.scale, layout.offset, layout.likelihood, *seen)


def _likelihood(spec: RunSpec, old: Prepared, bundle: Bundle) -> dict[str, Score]:
    """The likelihood scores of a model on the donor's held-out examples, read through its own codec."""
    reading = _read(spec, old, bundle)
    bundle.model.importance_samples = spec.evaluation.nll_samples
    evaluation = spec.evaluation.model_copy(update={"max_examples": None})
    subject = Subject(
        spec=spec.model_copy(update={"evaluation": evaluation}),
        layout=bundle.layout,
        codec=bundle.codec,
        model=bundle.model,
        arrays=reading.arrays,
        split=reading.split,
        device=bundle.device,
        surcharge_nats=reading.surcharge_nats,
        prepared=old,
    )
    metric = Likelihood()
    return metric.finish(metric.measure(subject), subject)


def _read(spec: RunSpec, old: Prepared, bundle: Bundle) -> Reading:
    """The first held-out rows of the set as the model reads them. Raises: PreparedDataError."""
    rows = min(MOST_ROWS, spec.evaluation.max_examples or MOST_ROWS)
    arrays = old.load_split(spec.evaluation.split, max_rows=rows)
    codec = old.codec
    if not isinstance(codec, TextCodec) or not isinstance(bundle.codec, TextCodec):
        return Reading(arrays, old.manifest.splits[spec.evaluation.split])
    texts = list(documents(arrays, codec, old.layout))
    split = {"characters": sum(map(len, texts)), "utf8_bytes": sum(len(text.encode()) for text in texts)}
    if bundle.codec.state() == codec.state():
        return Reading(arrays, split)
    return Reading(encoded(texts, bundle.codec, bundle.layout), split, _surcharge(texts, codec, bundle.codec))


def documents(arrays: SplitArrays, codec: TextCodec, layout: Layout) -> Iterator[str]:
    """The texts of encoded examples: one each, or the documents of a stream, the last one as far as it was read."""
    if not layout.continuous:
        yield from (codec.decode(row) for row in arrays.x.numpy())
        return
    stream = torch.cat([arrays.x.reshape(-1).long(), arrays.tail]).numpy()
    ends = np.flatnonzero(stream == layout.end_token) if layout.end_token is not None else np.array([], int)
    for document in np.split(stream, ends + 1):
        if len(document):
            yield codec.decode(document[:-1] if document[-1] == layout.end_token else document)


def encoded(texts: list[str], codec: TextCodec, layout: Layout) -> SplitArrays:
    """Texts as examples of a codec: one stream cut into windows, or examples of as many characters as surely fit."""
    if layout.continuous:
        stream = torch.from_numpy(np.concatenate(codec.encode_batch(texts)).astype(np.int64))
        whole = len(stream) // layout.length * layout.length
        x, tail = stream[:whole].view(-1, layout.length), stream[whole:]
    else:
        room = layout.length - 2
        pieces = [text[start : start + room] for text in texts for start in range(0, len(text), room)]
        x = torch.from_numpy(np.stack(codec.encode_batch(pieces)).astype(np.int64))
        tail = torch.zeros(0, dtype=torch.int64)
    return SplitArrays(x.to(torch.int32), torch.full((len(x),), -1), [], tail)


def _surcharge(texts: list[str], held: Codec, own: Codec) -> float:
    """Nats that a model is charged whose one symbol stands for all characters that it does not know."""
    if not isinstance(own, CharactersCodec):
        return 0.0
    known = set(held.characters) if isinstance(held, CharactersCodec) else set("".join(texts))
    stands_for = len(known - set(own.characters)) + 1
    return sum(map(own.count_unknown, texts)) * math.log(stands_for)
