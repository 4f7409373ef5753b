"""What a training would do, found out without doing any of it; on the driver, without Ray."""

from __future__ import annotations

from typing import Any

from pipeline.spec import RunSpec
from pipeline.storage import open_store
from pipeline.workflow import read_state, run_key


def plan(spec: RunSpec) -> dict[str, Any]:
    """What `train_job` would do, without doing any of it: what `--dry-run` prints."""
    from pipeline.data.codec import CODECS
    from pipeline.data.corpus import open_corpus
    from pipeline.data.manifest import prepared_key
    from pipeline.data.prepared import find_prepared
    from pipeline.inheriting import check_origin
    from pipeline.release.tracking import resolve_uri
    from pipeline.training.epochs import planned_steps

    store = open_store(spec.storage)
    check_origin(spec, resolve_uri(store, spec.tracking.uri))
    corpus = open_corpus(spec.data.source, CODECS[spec.data.codec.kind](spec.data.codec).modality)
    key = prepared_key(spec, corpus)
    found = find_prepared(store, key)
    run = run_key(spec, key, store)
    training = spec.training
    return {
        "prepared": {"key": key, "folder": store.path("prepared", key), "reused": found is not None},
        "run": {"key": run, "resumes": bool(read_state(store, run)), "folder": store.path("runs", run)},
        "workers": {
            "number": training.model_dump(mode="json")["num_workers"],
            "cpus_each": training.threads_per_worker or 1,
            "gpu": training.use_gpu,
        },
        "training": {
            "steps": training.steps if found is None else planned_steps(spec, found),
            "max_seconds": training.max_seconds,
            "epochs": training.epochs,
            "examples_per_step": training.batch_size,
            "micro_batch": training.micro_batch,
            "checkpoints": store.path("training", run),
            "checkpoint_every": training.checkpoint_every,
            "checkpoint_minutes": training.checkpoint_minutes,
        },
        "mlflow": {"uri": resolve_uri(store, spec.tracking.uri), "experiment": spec.tracking.experiment},
        "registry": spec.registry.name,
    }
