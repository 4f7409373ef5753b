"""Score a model on the held-out split: every metric that fits it, over Ray tasks or in this process. [ray]

Runs on the driver. Where Ray is initialised, `evaluation.num_workers` tasks each load the bundle (sent through the
object store, so that workers need not see the driver's disk) and the prepared split, and stream back their
progress and then their sums; else the same is done here. The driver adds the sums in the order of the ranks.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from pipeline.data.prepared import Prepared
from pipeline.errors import AtelierError, ComparisonError, CorpusError
from pipeline.evaluation.compare import Measured, labels_of, read_through
from pipeline.evaluation.condition_accuracy import ConditionAccuracy
from pipeline.evaluation.features import STAGE as EXTRACTOR_STAGE
from pipeline.evaluation.features import can_extract, find_extractors, find_prompt_classifier
from pipeline.evaluation.fidelity import FrechetDistance
from pipeline.evaluation.likelihood import Likelihood
from pipeline.evaluation.metric import Metric, Score, Scores, Subject, add
from pipeline.evaluation.sample_scores import SampleScores, collected
from pipeline.evaluation.samples import SampleFeatures
from pipeline.evaluation.text_samples import TextSamples
from pipeline.generation.sampling import load_bundle
from pipeline.models.base import Sums
from pipeline.progress import Progress, silent
from pipeline.spec import RunSpec

STAGE = "evaluate"
SECONDS_BETWEEN_NEWS = 0.5

METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (Likelihood, SampleScores, ConditionAccuracy, TextSamples)
}
"""Every metric of an evaluation; one that does not fit a subject has no pieces and gives no scores."""
COMPARED: dict[str, type[Metric]] = {metric.name: metric for metric in (Likelihood, FrechetDistance)}
"""The metrics whose scores are sums over blocks, so that two models can be compared block by block."""


@dataclass(frozen=True)
class News:
    """What a worker tells while it works: pieces done by this rank, of how many, and of which stage."""

    stage: str
    done: int
    total: int
    note: str


@dataclass(frozen=True)
class Work:
    """What every worker is told, besides its rank."""

    spec: RunSpec
    prepared: Prepared
    files: dict[str, bytes]
    world_size: int
    use_gpu: bool
    share_of_machine: int
    metrics: tuple[str, ...]

    def settle(self) -> torch.device:
        """Take this task's share of the machine's cores, and its device."""
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.share_of_machine))
        return torch.device("cuda" if self.use_gpu and torch.cuda.is_available() else "cpu")


def evaluate(spec: RunSpec, prepared: Prepared, bundle: Path, progress: Progress = silent) -> Scores:
    """Scores of the model in the folder `bundle`, under `<split>/<key>` (`test/nll_nats`), and which are refused.

    `spec.evaluation` decides the split, the examples and the workers; the numbers do not depend on the workers.
    Raises: CorpusError when the held-out split is empty, PreparedDataError, RegistryError, SpecError when the extractor
    is not there.
    """
    sums = _sums(spec, prepared, bundle, tuple(METRICS), progress)
    subject = load_subject(spec, prepared, bundle, torch.device("cpu"))
    scores: dict[str, Score] = {}
    refused: dict[str, str] = {}
    for name, metric in METRICS.items():
        if name in sums:
            scores |= metric().finish(sums[name], subject)
        refused |= metric().refusals(subject)
    before = f"{spec.evaluation.split}/"
    return Scores(
        {before + key: score for key, score in scores.items()}, {before + key: why for key, why in refused.items()}
    )


def collect_samples(
    spec: RunSpec, prepared: Prepared, bundle: Path, progress: Progress = silent
) -> SampleFeatures | None:
    """The features of generated, held-out and training examples that `evaluate` scores; None where there are too few
    or the examples have none. Raises: as `evaluate`."""
    sums = _sums(spec, prepared, bundle, (SampleScores.name,), progress)[SampleScores.name]
    return collected(sums, load_subject(spec, prepared, bundle, torch.device("cpu"))) if sums else None


def measure(
    spec: RunSpec, prepared: Prepared, bundle: Path, keys: Collection[str], progress: Progress = silent
) -> dict[str, Measured]:
    """Scores of the model in `bundle`, by their keys without the split's prefix, with the blocks they are made of.

    Two models that are measured with the same `spec` and `prepared` can be compared, whatever they were trained on.
    Raises: ComparisonError when the model cannot be scored on this data or has no such score, and as `evaluate`.
    """
    names = tuple(dict.fromkeys(_metric_of(key) for key in keys))
    sums = _sums(spec, prepared, bundle, names, progress)
    subject = load_subject(spec, prepared, bundle, torch.device("cpu"))
    found: dict[str, Measured] = {}
    for name in names:
        if not sums.get(name):
            continue
        metric = COMPARED[name]()
        scores, blocks = metric.finish(sums[name], subject), metric.blocks(sums[name], subject)
        values = metric.scoring(list(blocks.values()), subject)
        found |= {key: Measured(score, blocks, _value_of(values, key)) for key, score in scores.items()}
    missing = [key for key in keys if key not in found]
    if missing:
        raise ComparisonError(
            f"{bundle}: the evaluation of this {subject.spec.model.family.kind} gives no "
            f"{', '.join(map(repr, missing))} on {prepared.store.uri}, it gives "
            f"{', '.join(found) or 'nothing (a distance needs signals)'}; set "
            "release.improve, release.keep or a schedule's compare.metric to one of them"
        )
    return {key: found[key] for key in keys}


def _metric_of(key: str) -> str:
    """The metric that gives a score."""
    return FrechetDistance.name if key.startswith(FrechetDistance.name) else Likelihood.name


def _value_of(values: Callable[[Sums], dict[str, float]], key: str) -> Callable[[Sums], float]:
    return lambda part: values(part)[key]


def _sums(
    spec: RunSpec, prepared: Prepared, bundle: Path, metrics: tuple[str, ...], progress: Progress
) -> dict[str, Sums]:
    """The sums of all ranks, by metric. Raises: CorpusError when there is nothing to score on."""
    entry = prepared.manifest.splits.get(spec.evaluation.split, {})
    if not entry.get("rows") and len(entry.get("tail_tokens", ())) < 2:
        raise CorpusError(
            f"{prepared.store.uri}: the split {spec.evaluation.split!r} is empty, there is nothing to score on; raise "
            f"data.split.{spec.evaluation.split}, or set evaluation.split to one that has records"
        )
    if ray.is_initialized():
        return _sums_by_tasks(spec, prepared, bundle, metrics, progress)
    return _sums_here(spec, prepared, bundle, metrics, progress)


def load_subject(spec: RunSpec, prepared: Prepared, bundle: Path, device: torch.device) -> Subject:
    """The model and the held-out split, read through the model's own codec and labels, with the prepared set's
    extractor where it has one already. Raises: ComparisonError when the model is of other examples than the split."""
    loaded = load_bundle(bundle, device)
    loaded.model.importance_samples = spec.evaluation.nll_samples
    arrays = prepared.load_split(spec.evaluation.split)
    cut = spec.evaluation.max_examples
    num_rows = len(arrays) if cut is None else min(len(arrays), cut)
    arrays, surcharge_nats = read_through(loaded.codec, prepared.codec, arrays, num_rows)
    arrays = replace(arrays, label=labels_of(arrays.label, prepared.layout.labels, loaded.layout.labels))
    extractor, classifier = find_extractors(spec, prepared, device)
    return Subject(
        spec=spec,
        layout=loaded.layout,
        codec=loaded.codec,
        model=loaded.model,
        arrays=arrays,
        split=prepared.manifest.splits[spec.evaluation.split],
        device=device,
        extractor=extractor,
        classifier=classifier,
        prompt_classifier=find_prompt_classifier(spec, prepared, device),
        prepared=prepared,
        surcharge_nats=surcharge_nats,
    )


def _news_of_work(work: Work, bundle: Path, rank: int, device: torch.device) -> Iterator[News | dict[str, Sums]]:
    """News after every piece, and at last this rank's sums by metric."""
    subject = load_subject(work.spec, work.prepared, bundle, device)
    metrics = [(METRICS | COMPARED)[name]() for name in work.metrics]
    counts = [len(range(rank, metric.num_pieces(subject), work.world_size)) for metric in metrics]
    done, total = 0, sum(counts)
    result: dict[str, Sums] = {}
    for metric in metrics:
        sums: Sums = {}
        for piece in metric.pieces(subject, rank, work.world_size):
            add(sums, piece)
            done = min(done + 1, total)
            yield News(STAGE, done, total, metric.name)
        result[metric.name] = sums
    yield result


def _sums_here(
    spec: RunSpec, prepared: Prepared, bundle: Path, metrics: tuple[str, ...], progress: Progress
) -> dict[str, Sums]:
    device = torch.device("cuda" if spec.training.use_gpu and torch.cuda.is_available() else "cpu")
    find_extractors(spec, prepared, device, progress)
    find_prompt_classifier(spec, prepared, device, progress)
    work = Work(spec, prepared, {}, 1, device.type == "cuda", 1, metrics)
    sums: dict[str, Sums] = {}
    for news in _news_of_work(work, bundle, 0, device):
        if isinstance(news, News):
            progress(news.stage, news.done, news.total, news.note)
        else:
            sums = news
    return sums


# --- with Ray -------------------------------------------------------------------------------------------------


def _train_extractor_task(work: Work) -> Iterator[News]:
    """Train or fetch the extractor and keep it in the prepared set, unless it is there."""
    device = work.settle()
    yield News(EXTRACTOR_STAGE, 0, 0, "a small network whose features measure samples")
    find_extractors(work.spec, work.prepared, device)
    find_prompt_classifier(work.spec, work.prepared, device)


def _measure_task(work: Work, rank: int) -> Iterator[News | dict[str, Sums]]:
    """One rank of the evaluation."""
    device = work.settle()
    with tempfile.TemporaryDirectory(prefix="atelier-bundle-") as folder:
        for name, data in work.files.items():
            Path(folder, name).write_bytes(data)
        told = 0.0
        for news in _news_of_work(work, Path(folder), rank, device):
            now = time.monotonic()
            if not isinstance(news, News) or news.done == news.total or now - told > SECONDS_BETWEEN_NEWS:
                told = now
                yield news


def _sums_by_tasks(
    spec: RunSpec, prepared: Prepared, bundle: Path, metrics: tuple[str, ...], progress: Progress
) -> dict[str, Sums]:
    workers = spec.evaluation.num_workers
    gpus = ray.cluster_resources().get("GPU", 0.0) if spec.training.use_gpu else 0.0
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    options: dict[str, Any] = {"num_cpus": 1, "num_gpus": min(1.0, gpus / workers), "max_retries": 1}
    files = {path.name: path.read_bytes() for path in sorted(bundle.iterdir()) if path.is_file()}
    work = Work(spec, prepared, files, workers, gpus > 0, max(1, -(-workers // nodes)), metrics)
    if {FrechetDistance.name, SampleScores.name} & set(metrics) and can_extract(prepared.layout):
        alone = Work(spec, prepared, {}, 1, gpus > 0, 1, metrics)
        _follow([ray.remote(_train_extractor_task).options(**options).remote(alone)], progress)
    shared = ray.put(work)
    task = ray.remote(_measure_task).options(**options)
    parts = _follow([task.remote(shared, rank) for rank in range(workers)], progress)
    sums: dict[str, Sums] = {}
    for part in parts:
        for name, found in part.items():
            add(sums.setdefault(name, {}), found)
    return sums


def _follow(streams: list[Any], progress: Progress) -> list[dict[str, Sums]]:
    """Read the streams of all ranks to their ends, passing on their news together; their sums, by rank."""
    latest: dict[int, News] = {}
    sums: dict[int, dict[str, Sums]] = {}
    ranks = {stream: rank for rank, stream in enumerate(streams)}
    waiting = list(streams)
    try:
        while waiting:
            ready, _ = ray.wait(waiting, num_returns=1)
            for stream in ready:
                try:
                    news = ray.get(next(stream))
                except StopIteration:
                    waiting.remove(stream)
                    continue
                if isinstance(news, News):
                    latest[ranks[stream]] = news
                    done, total = sum(one.done for one in latest.values()), sum(one.total for one in latest.values())
                    progress(news.stage, done, total or None, news.note)
                else:
                    sums[ranks[stream]] = news
    except RayTaskError as error:
        if isinstance(error.cause, AtelierError):
            raise error.cause from None
        raise
    finally:
        for stream in waiting:
            ray.cancel(stream, force=False)
    return [sums[rank] for rank in sorted(sums)]
