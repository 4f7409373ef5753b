"""Launching a training from the driver as a Ray Train run.  [ray]

The same name and storage resume by themselves: the workers find the run's checkpoints in its folder (`shelf`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

import pipeline.errors
from pipeline.data.prepared import Prepared
from pipeline.errors import CheckpointError, OutOfMemoryError, TrainingFailedError
from pipeline.progress import Progress
from pipeline.spec import RunSpec, TrainingSpec
from pipeline.storage import Store
from pipeline.training.allocation import KEEP_FREED_MEMORY
from pipeline.training.checkpoint import load_scoring_weights
from pipeline.training.ending import Trained, leave
from pipeline.training.following import Follower
from pipeline.training.memory import ended_for_memory
from pipeline.training.room import lacking
from pipeline.training.shelf import Shelf, shelf_of

if TYPE_CHECKING:
    from ray.train import UserCallback

START_SECONDS = "20"
"""How long an elastic run waits for the number of workers that it found room for, before it looks again."""
SILENT_DEATH = "killed by the OOM killer"
"""Of the causes that Ray gives for a worker whose process ended without a word (SIGKILL, SIGSEGV), the first."""
NODE_MEMORY = re.compile(r"Memory on the node \(IP: (?P<node>[^,)]+).*?\) was (?P<taken>.+? limit)")
"""What Ray's memory monitor says of the node whose worker it ended."""


def train_with_ray(
    spec: RunSpec,
    prepared: Prepared,
    store: Store,
    run_key: str,
    tracking_uri: str | None,
    run_id: str | None,
    progress: Progress,
    callbacks: Sequence[UserCallback] = (),
    initial_weights: str | None = None,
) -> Trained:
    """Train on Ray Train workers, from the last checkpoint of `run_key` if there is one, else from `initial_weights`
    (a name that `initial.keep_weights` gave) if there are any.

    `callbacks` run in Train's controller: a trial's hand its reports to Tune. Raises: the AtelierError of a worker,
    OutOfMemoryError when one was ended for want of memory, or TrainingFailedError when workers failed oftener than
    `training.max_failures` without a new checkpoint; SystemExit when SIGTERM stopped it, with a checkpoint if it came
    within `training.stop_seconds`.
    """
    from ray.exceptions import OutOfMemoryError as EndedByRay
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError as RayTrainingFailedError

    from pipeline.ray_session import gpus, is_own, node_resources
    from pipeline.training.asked import CatchSigterm, ends_when_stopped
    from pipeline.training.lean_trainer import LeanTorchTrainer
    from pipeline.training.worker import WorkerConfig, train_worker

    training = spec.training
    use_gpu = gpus() >= training.fewest_workers if training.use_gpu == "auto" else training.use_gpu
    bundle = {"CPU": training.threads_per_worker or 1, **({"GPU": 1} if use_gpu else {})}
    if training.fewest_workers < training.most_workers:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_SECONDS)
    config = WorkerConfig(
        spec.as_dict(), store.uri, prepared.key, run_key, tracking_uri, run_id, initial_weights, bool(callbacks)
    )
    shelf = shelf_of(store, run_key, training)
    # Of a run that was begun when Ray still kept the checkpoints: it will not start when one of them is gone.
    shelf.store.delete_file("checkpoint_manager_snapshot.json")
    trainer = LeanTorchTrainer(
        train_worker,
        own_ray=is_own(),
        shelf=shelf,
        train_loop_config=config.as_dict(),
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,
            elastic_resize_monitor_interval_s=training.resize_seconds,
            use_gpu=use_gpu,
            placement_strategy=training.placement.upper(),
            resources_per_worker=bundle,
        ),
        run_config=RunConfig(
            name=run_key,
            storage_path=store.path("training"),
            storage_filesystem=None if store.is_local else store.filesystem,
            failure_config=FailureConfig(max_failures=training.max_failures),
            callbacks=[*callbacks, CatchSigterm()],
            # On a GPU the memory of steps is not the process's.
            worker_runtime_env=None if use_gpu else {"env_vars": KEEP_FREED_MEMORY},
        ),
    )

    def in_want() -> str:
        return lacking(bundle, training.fewest_workers, node_resources())

    with (
        Follower(run_key, training.steps, training.max_seconds, progress, in_want) as follower,
        ends_when_stopped(run_key, training.stop_seconds, lambda: follower.first_step_at is not None) as termination,
    ):
        ended_before = ended_for_memory()
        try:
            result = trainer.fit()
            stopped = termination.asked.is_set()
        except (RayTrainingFailedError, EndedByRay) as error:  # the latter where Ray ended the controller
            raise _cause_of(error, training, ended_for_memory() - ended_before) from error
    value: dict[str, Any] = result.return_value or {}
    if "failure" in value:
        raise getattr(pipeline.errors, value["failure"])(value["message"])
    if "step" not in value:
        raise TrainingFailedError(f"{run_key}: training ended without telling where; see {result.path}")
    if stopped:
        leave(progress, value["step"], value["steps"])
    weights, metrics, warnings = final_weights(shelf, value["step"]), value["metrics"], value["warnings"]
    return Trained(value["step"], value["seconds"], weights, follower.first_step_at, metrics, warnings)


def final_weights(shelf: Shelf, step: int) -> dict[str, Tensor]:
    """Those for scores, of the checkpoint with which a training ended. An older one would be of a shorter training.

    Raises: CheckpointError when it was damaged since.
    """
    try:
        with shelf.opened(step) as folder:
            assert folder is not None
            return load_scoring_weights(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; training ended with it, so run the same command: it goes on from the checkpoint before, and "
            "writes this one again"
        ) from error


def _cause_of(error: Exception, training: TrainingSpec, ended_here: int) -> Exception:
    """The AtelierError that a worker raised, or OutOfMemoryError for one that was ended for want of memory, or a
    summary of what Ray says. `ended_here` counts the processes that this machine's kernel ended since."""
    failures = getattr(error, "worker_failures", None) or {}
    for rank, failure in failures.items():
        cause = getattr(failure, "base_exc", failure)
        seen = cause
        while seen is not None:
            if isinstance(seen, pipeline.errors.AtelierError):
                return type(seen)(f"worker {rank}: {seen}")
            seen = getattr(seen, "cause", None) or seen.__cause__
    ended = {f"worker {rank}": getattr(failure, "health_check_failure", failure) for rank, failure in failures.items()}
    for who, failure in (ended or {"the controller": error}).items():
        if (found := _want_of_memory(who, failure, training, ended_here)) is not None:
            return found
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return TrainingFailedError(f"training failed after its restarts: {lines[-1] if lines else type(error).__name__}")


def _want_of_memory(who: str, failure: Exception, training: TrainingSpec, ended_here: int) -> Exception | None:
    """What to say of a process that was ended from outside, if it was: by Ray's memory monitor, which says so, or
    without a word, as the kernel does."""
    from ray.exceptions import OutOfMemoryError as EndedByRay

    if isinstance(failure, EndedByRay):
        seen = NODE_MEMORY.search(str(failure))
        of = "" if seen is None else f" on node {seen['node']} ({seen['taken']})"
        return OutOfMemoryError(f"{who}: memory ran out{of}, and Ray ended it; {_take_less(training)}")
    if SILENT_DEATH not in str(failure):
        return None
    if ended_here > 0:
        return OutOfMemoryError(
            f"{who}: its process ended without a word, and the driver's machine has ended {ended_here} for want of "
            f"memory since the training began, most likely that one; {_take_less(training)}"
        )
    return TrainingFailedError(
        f"{who}: its process ended without a word; most often memory ran out, which the log of its node's kernel says "
        f"('dmesg | grep -i oom'): then {_take_less(training)}"
    )


def _take_less(training: TrainingSpec) -> str:
    if training.micro_batch == "auto":
        return "set training.batch_size to less, or take a smaller model, or a machine with more memory"
    if training.sharding == "fsdp":
        return "set training.micro_batch or training.batch_size to less, or train on more workers"
    return "set training.micro_batch to auto, which finds how many examples at once fit, or training.batch_size to less"
