"""What a driver says of workers that cannot be placed, and of those that were ended from outside."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import TrainingFailedError as RayTrainingFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from pipeline.errors import AtelierError, OutOfMemoryError, TrainingFailedError
from pipeline.progress import WARNING, silent
from pipeline.storage import open_store
from pipeline.training import launch, worker
from pipeline.training.launch import train_with_ray
from pipeline.training.memory import ended_for_memory
from tests.conftest import cell_spec, prepared_in_memory
from tests.training.key_value_store import kept_here

# As Ray 2.60 said them of a worker that took memory until it was ended, and of one that got SIGKILL.
BY_THE_MONITOR = ray.exceptions.OutOfMemoryError(
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 26b82141) "
    "was 5.92GB used / 23.54GB limit (0.251517)\nOOM kill reason: Memory usage 6323662848B exceeded threshold of "
    "6319128576B (25.0% of 25276514304B limit)\nTo see more information about memory usage on this node, use `ray logs`"
)
BY_SIGKILL = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed "
    "unexpectedly due to SIGSEGV or another unexpected error."
)
WITH_ITS_NODE = "The actor died because its node has died."


def died(message: str) -> ray.exceptions.ActorDiedError:
    cause = ActorDiedErrorContext(actor_id=bytes(16), class_name="RayTrainWorker", pid=7, error_message=message)
    return ray.exceptions.ActorDiedError(cause)


def of_worker(failure: Exception) -> RayTrainingFailedError:
    """What `fit` raises when that ended rank 1 and rank 0 was in a collective with it."""
    ended = WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: Worker(…)", failure)
    return WorkerGroupError(str(ended), {0: RuntimeError("Connection closed by peer"), 1: ended})


def raised(
    failure: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch, ended_here: int = 0, **training: Any
) -> AtelierError:
    """What a command makes of what `fit` raises while the kernel ended so many processes of this machine."""

    class Trainer:
        def __init__(self, *_: object, **__: object) -> None:
            """Nothing is started."""

        def fit(self) -> Any:
            counted.append(counted[-1] + ended_here)
            raise failure

    counted = [3]  # and earlier ones are of no account
    kept_here(monkeypatch)
    monkeypatch.setattr(worker, "told", lambda key: {})
    monkeypatch.setattr("pipeline.ray_session.node_resources", lambda: [{"CPU": 1.0}])
    monkeypatch.setattr(launch, "ended_for_memory", lambda: counted[-1])
    monkeypatch.setattr("pipeline.training.lean_trainer.LeanTorchTrainer", Trainer)
    spec = cell_spec("vae", "image", use_gpu=False, **training)
    with pytest.raises(AtelierError) as error:
        train_with_ray(spec, prepared_in_memory(spec), open_store(str(folder)), "a-run", None, None, silent)
    return error.value


@pytest.mark.parametrize(
    ("training", "advice"),
    [
        ({}, "set training.micro_batch to auto, which finds how many examples at once fit, or training.batch_size"),
        ({"micro_batch": "auto"}, "set training.batch_size to less, or take a smaller model, or a machine"),
        ({"sharding": "fsdp"}, "set training.micro_batch or training.batch_size to less, or train on more workers"),
    ],
)
def test_a_worker_that_rays_memory_monitor_ended_says_what_to_set(
    training: dict[str, Any], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = raised(of_worker(BY_THE_MONITOR), tmp_path, monkeypatch, **training)
    assert isinstance(error, OutOfMemoryError)
    taken = "memory ran out on node 192.0.2.2 (5.92GB used / 23.54GB limit)"
    assert str(error).startswith(f"worker 1: {taken}, and Ray ended it; {advice}")


def test_a_controller_that_rays_memory_monitor_ended_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = raised(BY_THE_MONITOR, tmp_path, monkeypatch)
    assert isinstance(error, OutOfMemoryError) and str(error).startswith("the controller: memory ran out on node")


def test_a_worker_that_was_killed_ran_out_of_memory_where_the_kernel_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = raised(of_worker(died(BY_SIGKILL)), tmp_path, monkeypatch, ended_here=1)
    assert isinstance(error, OutOfMemoryError)
    assert str(error).startswith(
        "worker 1: its process ended without a word, and the driver's machine has ended 1 for want of memory since the "
        "training began, most likely that one; set training.micro_batch to auto"
    )


def test_a_worker_that_was_killed_by_no_one_knows_whom_is_not_said_to_have_run_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = raised(of_worker(died(BY_SIGKILL)), tmp_path, monkeypatch)
    assert isinstance(error, TrainingFailedError)
    assert "most often memory ran out" in str(error) and "then set training.micro_batch to auto" in str(error)


def test_a_worker_whose_node_was_lost_says_nothing_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = raised(of_worker(died(WITH_ITS_NODE)), tmp_path, monkeypatch, ended_here=1)
    assert isinstance(error, TrainingFailedError)
    assert str(error) == "training failed after its restarts: The actor died because its node has died."


def test_what_a_worker_said_itself_comes_before_how_another_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = WorkerHealthCheckFailedError("A worker health check failed.", died(BY_SIGKILL))
    said = WorkerGroupError(str(ended), {0: ended, 1: OutOfMemoryError("64 at once fit")})
    assert str(raised(said, tmp_path, monkeypatch)) == "worker 1: 64 at once fit"


@pytest.mark.parametrize(
    ("text", "count"), [("pgfault 7\noom_kill 12\nballoon_inflate 0\n", 12), ("pgfault 7\n", 0), (None, 0)]
)
def test_the_kernel_counts_whom_it_ended(text: str | None, count: int, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "vmstat").write_text(text)
    assert ended_for_memory(tmp_path / "vmstat") == count


def test_a_training_whose_workers_cannot_be_placed_says_so_while_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = threading.Event()
    warnings: list[str] = []

    def progress(stage: str, done: int, total: int | None, note: str) -> None:
        if stage == WARNING:
            warnings.append(note)
            said.set()

    class Trainer:
        def __init__(self, *_: object, scaling_config: Any, **__: object) -> None:
            assert scaling_config.total_resources == {"CPU": 8.0}

        def fit(self) -> Any:
            assert said.wait(30)
            return SimpleNamespace(return_value={}, path="nowhere")

    kept_here(monkeypatch)
    monkeypatch.setattr(worker, "told", lambda key: {})
    monkeypatch.setattr("pipeline.ray_session.node_resources", lambda: [{"CPU": 4.0}, {"CPU": 2.0}])
    monkeypatch.setattr("pipeline.training.lean_trainer.LeanTorchTrainer", Trainer)
    spec = cell_spec("vae", "image", use_gpu=False, num_workers=4, threads_per_worker=2)
    with pytest.raises(TrainingFailedError, match="ended without telling where"):
        train_with_ray(spec, prepared_in_memory(spec), open_store(str(tmp_path)), "a-run", None, None, progress)
    (warning,) = warnings
    assert warning.startswith(
        "4 workers of 2 CPU wanted, and the cluster has room for 3 (1 node of 4 CPU, 1 node of 2 CPU)"
    )
