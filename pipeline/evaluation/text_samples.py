"""The texts that a model generates, at several temperatures: drawn on any worker, scored on the driver.

Each piece of work is a batch of texts at one temperature, and yields their tokens under a name of its own, so that the
sums of all ranks are the tokens of all texts. The driver decodes them, scores them beside two disjoint sets of held-out
texts of the same number, and holds those of one temperature against the training split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.data.codec import Codec
from pipeline.data.prepared import Prepared
from pipeline.errors import TrainingFailedError
from pipeline.evaluation.copied_spans import find_copies, show_copies
from pipeline.evaluation.metric import Curve, Metric, Score, Subject
from pipeline.evaluation.text_scores import (
    DEFINITIONS_OF_TEXTS,
    HELD_OUT,
    TextRules,
    Values,
    newness,
    quality_and_variety,
)
from pipeline.models.base import SamplingOptions, Sums, make_generator

TOKENS = 256
"""Tokens of a text that is drawn from a model of continuous text, and of the held-out passages beside it."""
FEWEST = 20
"""Held-out texts, in each of the two sets, below which nothing is scored."""
SHOWN = 8
TOKENS_OF_A_CHARACTER = 4
"""At most, in any codec: the bytes of a character."""


@dataclass(frozen=True)
class Chunk:
    """Texts `start` to `stop` of those at one temperature."""

    temperature: float
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.temperature:g}/{self.number:05d}"


class TextSamples(Metric):
    """The scores of `DEFINITIONS_OF_TEXTS`, at the temperature nearest to 1, with their curves over all temperatures.

    Protocol: m = min(evaluation.samples, half of the scored held-out texts) texts in each set; of continuous text as
    many tokens as `evaluation.samples` windows have, in passages of 256. The held-out texts are the same for every run
    on the prepared set. Units, directions and intervals are those of `text_scores`.
    """

    name = "texts"

    def num_texts(self, subject: Subject) -> int:
        """Texts in each set; 0 when there are too few, and for other modalities."""
        if subject.layout.modality != "text":
            return 0
        held_out, samples = len(held_out_rows(subject)), subject.spec.evaluation.samples
        if subject.layout.continuous:
            samples = samples * subject.layout.length // TOKENS
        count = min(samples, held_out // 2)
        return count if count >= FEWEST else 0

    def chunks(self, subject: Subject) -> list[Chunk]:
        """All the work, cut by the data and the spec alone."""
        total = self.num_texts(subject)
        size = subject.spec.evaluation.batch_size
        return [
            Chunk(temperature, number, start, min(start + size, total))
            for temperature in sorted(set(subject.spec.evaluation.temperatures))
            for number, start in enumerate(range(0, total, size))
        ]

    def num_pieces(self, subject: Subject) -> int:
        return len(self.chunks(subject))

    def pieces(self, subject: Subject, rank: int, world_size: int) -> Iterator[Sums]:
        chunks = self.chunks(subject)[rank::world_size]
        if chunks and not all(bool(torch.isfinite(weight).all()) for weight in subject.model.parameters()):
            raise TrainingFailedError(
                "evaluation: the model's weights hold values that are not finite, so no text can be drawn; train again "
                "with a lower training.lr or a clip_norm"
            )
        was_training = subject.model.training
        subject.model.eval()
        try:
            for chunk in chunks:
                stream = f"evaluation-text-{chunk.temperature:g}"
                generator = make_generator(subject.spec.seed, stream, chunk.number, device=subject.device)
                options = SamplingOptions(
                    temperature=chunk.temperature, length=TOKENS if subject.layout.continuous else None
                )
                with torch.inference_mode():
                    tokens = subject.model.sample(chunk.stop - chunk.start, generator, options)
                yield {chunk.name: tokens.to("cpu", torch.int32).clone()}
        finally:
            subject.model.train(was_training)

    def blocks(self, sums: Sums, subject: Subject) -> dict[int, Sums]:
        """None: text statistics are of sets of texts, and take their own intervals."""
        return {}

    def scoring(self, blocks: Sequence[Sums], subject: Subject) -> Callable[[Sums], dict[str, float]]:
        raise AssertionError("scores of sets of texts are not made of sums")

    def finish(self, sums: Sums, subject: Subject) -> dict[str, Score]:
        count = self.num_texts(subject)
        if not sums or not count or subject.prepared is None:
            return {}
        texts = decoded_samples(sums, subject.codec)
        references, held_out = held_out_texts(subject, count)
        whole = not subject.layout.continuous
        rules = TextRules.of(references, held_out, whole)
        sweep = {temperature: quality_and_variety(found, references, rules) for temperature, found in texts.items()}
        others = quality_and_variety(held_out, references, rules)
        nearest = min(texts, key=lambda temperature: (abs(temperature - 1), temperature))

        both = [*texts[nearest], *held_out]
        longest = max(map(len, both))
        copies = find_copies(both, training_texts(subject.prepared, longest), rules.gram, whole)
        training = training_texts(subject.prepared, longest)
        shown = show_copies(texts[nearest], copies.part(0, count), training, SHOWN)
        new = newness(texts[nearest], copies.part(0, count))
        others |= newness(held_out, copies.part(count, 2 * count))

        protocol = subject.protocol(
            texts=count, references=count, unit=rules.unit, tokens=rules.budget, gram_characters=rules.gram
        )
        if subject.layout.continuous:
            protocol["tokens_of_a_text"] = TOKENS
        scores: dict[str, Score] = {}
        for key, (value, interval) in (sweep[nearest] | new).items():
            definition = DEFINITIONS_OF_TEXTS[key]
            score = Score(value, definition.unit, definition.better, {**protocol, "temperature": nearest}, interval)
            if key in sweep[nearest] and len(sweep) > 1:
                score = replace(score, curve=_curve(sweep, key))
            scores[key] = score
            value, interval = others[key]
            scores[key + HELD_OUT] = Score(value, definition.unit, None, dict(protocol), interval)
        scores["copied_share"] = replace(scores["copied_share"], shown=tuple(source.as_dict() for source in shown))
        return scores


def _curve(sweep: dict[float, Values], key: str) -> Curve:
    values = [found[key] for found in sweep.values()]
    return Curve("temperature", tuple(sweep), tuple(value for value, _ in values), tuple(pair for _, pair in values))


def decoded_samples(sums: Sums, codec: Codec) -> dict[float, list[str]]:
    """The texts of each temperature, in the order in which they were cut into pieces."""
    texts: dict[float, list[str]] = {}
    for name in sorted(sums, key=lambda name: (float(name.partition("/")[0]), name)):
        rows = sums[name].numpy()
        texts.setdefault(float(name.partition("/")[0]), []).extend(str(codec.decode(row)) for row in rows)
    return texts


def held_out_rows(subject: Subject) -> Tensor:
    """The scored part of the held-out split as stored tokens `[N, T]`: its documents, or passages of its stream."""
    rows = subject.arrays.x[: subject.num_rows]
    if not subject.layout.continuous:
        return rows
    stream = rows.reshape(-1)
    if len(rows) == len(subject.arrays.x):
        stream = torch.cat([stream, subject.arrays.tail.to(stream.dtype)])
    return stream[: len(stream) // TOKENS * TOKENS].reshape(-1, TOKENS)


def held_out_texts(subject: Subject, count: int) -> tuple[list[str], list[str]]:
    """Two disjoint sets of `count` held-out texts, the same for every run on the prepared set."""
    rows = subject.layout.to_model(held_out_rows(subject)).numpy()
    # Not the run's seed: as for the Fréchet distance, every run is compared with the same real examples.
    order = torch.randperm(len(rows), generator=make_generator(0, "evaluation-real"))[: 2 * count].tolist()
    texts = [str(subject.codec.decode(rows[place])) for place in order]
    return texts[:count], texts[count:]


def training_texts(prepared: Prepared, longest: int) -> Iterator[list[str]]:
    """The training split, a row group at a time: its documents or, of a stream, one text that begins with enough of the
    group before for any span of `longest` characters that goes over the edge to be whole in it."""
    codec, layout = prepared.codec, prepared.layout
    before = torch.zeros(0, dtype=torch.int64)
    overlap = longest * TOKENS_OF_A_CHARACTER
    for shard in prepared.shards("train"):
        for _, examples in shard.groups():
            rows = layout.to_model(torch.from_numpy(examples.x.astype(layout.loaded_dtype)))
            if not layout.continuous:
                yield [str(codec.decode(row)) for row in rows.numpy()]
                continue
            stream = torch.cat([before, rows.reshape(-1)])
            yield [str(codec.decode(stream.numpy()))]
            before = stream[-overlap:].clone()
    tail = torch.tensor(prepared.manifest.splits["train"]["tail_tokens"], dtype=torch.int64)
    if layout.continuous and len(tail):
        yield [str(codec.decode(torch.cat([before, tail]).numpy()))]
