"""The newest checkpoint that can be trusted, which are kept, and what is left of others."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import storage
from pipeline.errors import CheckpointError, StorageError
from pipeline.progress import silent
from pipeline.storage import Store, open_store
from pipeline.training import shelf as shelves
from pipeline.training import worker
from pipeline.training.checkpoint import Position, load_scoring_weights, read_state, verify
from pipeline.training.in_process import LocalHooks, train_in_process
from pipeline.training.launch import final_weights
from pipeline.training.shelf import UNFINISHED, Found, Shelf
from tests.conftest import prepared_in_memory
from tests.saved_checkpoints import local_checkpoints
from tests.training.cut_off_runs import RUN, cut_off, flip, folders, session_of, spec_of, train

# --- the newest that can be trusted --------------------------------------------------------------------------


def cut(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_format(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 99}))


def another_step(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 5'))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped": (flip, r"weights\.safetensors: its sha256 is not the one"),
    "cut_short": (cut, r"optimizer\.safetensors: its sha256"),
    "file_missing": (lambda folder: (folder / "average.safetensors").unlink(), r"average\.safetensors.*No such file"),
    "no_state": (lambda folder: (folder / "state.json").unlink(), r"no state\.json"),
    "half_a_state": (lambda folder: (folder / "state.json").write_text('{"format": 1, '), "not valid JSON"),
    "flipped_state": (another_step, r"state\.json: its sha256 is not the one in it"),
    "another_format": (another_format, "checkpoint format 99, this version reads 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_taken_and_the_run_ends_the_same(damage: str, tmp_path: Path) -> None:
    spec = spec_of(report_every=1)
    whole = train(spec, tmp_path / "whole")
    newest, (harm, why) = cut_off(spec, tmp_path), DAMAGES[damage]
    harm(newest)
    warnings: list[str] = []
    trained = train(spec, tmp_path, warnings)
    (warning,) = warnings
    assert warning.startswith("Checkpoint refused (checkpoint_refused) at step 2: ")
    assert re.search(why, warning), warning
    assert "going on from step 2" in warning
    assert "checkpoint_refused" in [one["kind"] for one in trained.warnings]
    assert trained.weights.keys() == whole.weights.keys()
    for name, value in whole.weights.items():
        assert torch.equal(trained.weights[name], value), f"{name} differs"
    # The damaged one was written again, and is whole.
    assert folders(tmp_path) == ["step-00000004", "step-00000006"]
    verify(newest)


def test_with_no_checkpoint_left_to_trust_nothing_is_trained(tmp_path: Path) -> None:
    spec = spec_of(report_every=1)
    cut_off(spec, tmp_path)
    for folder in local_checkpoints(tmp_path / "training" / RUN):
        flip(folder)
    with pytest.raises(CheckpointError, match=r"no checkpoint there can be trusted: .*step-00000004.*step-00000002"):
        train(spec, tmp_path)
    assert folders(tmp_path) == ["step-00000002", "step-00000004"]


def test_a_refused_checkpoint_of_a_step_that_does_not_come_again_goes_with_the_next_one(tmp_path: Path) -> None:
    spec = spec_of(report_every=1)
    shutil.copytree(newest := cut_off(spec, tmp_path), newest.with_name("step-00000005"))
    flip(newest.with_name("step-00000005"))
    warnings: list[str] = []
    train(spec, tmp_path, warnings)
    assert "going on from step 4" in warnings[0]
    assert folders(tmp_path) == ["step-00000004", "step-00000006"]


def test_weights_of_a_damaged_last_checkpoint_are_not_those_of_the_one_before(tmp_path: Path) -> None:
    spec = spec_of(report_every=1)
    train(spec, tmp_path)
    shelf = Shelf(open_store(str(tmp_path / "training" / RUN)), 2)
    assert final_weights(shelf, 6).keys() == session_of(spec).stepper.state.scoring_weights().keys()
    flip(tmp_path / "training" / RUN / "step-00000006")
    with pytest.raises(CheckpointError, match=r"step-00000006.*: its sha256 .* goes on from the checkpoint before"):
        final_weights(shelf, 6)


def test_a_checkpoint_of_another_spec_is_no_damaged_one(tmp_path: Path) -> None:
    spec = spec_of(report_every=1)
    cut_off(spec, tmp_path)
    with pytest.raises(CheckpointError, match=r"training\.lr was 0\.001, is 0\.1"):
        train(spec_of(report_every=1, lr=0.1), tmp_path)


def test_all_ranks_go_by_what_rank_zero_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    def broadcast(mine: Any) -> Any:
        """What rank 0, which is called first here, sent."""
        said.append(mine)
        return said[0]

    monkeypatch.setattr(worker.ray.train.collective, "broadcast_from_rank_zero", broadcast)
    spec = spec_of(report_every=1)
    flip(cut_off(spec, tmp_path))
    shelves_of = [Shelf(open_store(str(tmp_path / "training" / RUN)), 2) for _ in range(2)]
    found = [worker.find_checkpoint(shelf, rank, 2) for rank, shelf in enumerate(shelves_of)]
    assert found[0] == found[1] and found[1].step == 2 and len(found[1].refused) == 1
    assert [shelf.refused for shelf in shelves_of] == [{4}, set()], "only rank 0 looks, and deletes"

    said.clear()
    flip(tmp_path / "training" / RUN / "step-00000002")
    for rank, shelf in enumerate(shelves_of):
        with pytest.raises(CheckpointError, match="no checkpoint there can be trusted"):
            worker.find_checkpoint(shelf, rank, 2)


# --- which are kept ------------------------------------------------------------------------------------------


def test_the_last_are_kept_and_the_best_is_in_each_of_them(tmp_path: Path) -> None:
    spec = spec_of(steps=8, lr=0.2, schedule="constant", report_every=1, validate_every=1, keep_best=True)
    best: dict[int, dict[str, torch.Tensor]] = {}
    session = session_of(spec)

    class Keeping(LocalHooks):
        def report(self, at: Position, metrics: dict[str, float]) -> None:
            super().report(at, metrics)
            best[at.step] = {name: value.clone() for name, value in session.stepper.state.scoring_weights().items()}

    session.run(Keeping(spec, tmp_path))
    kept = local_checkpoints(tmp_path)
    assert [folder.name for folder in kept] == ["step-00000006", "step-00000008"]
    for folder in kept:
        at = read_state(folder)["course"]["best_step"]
        for name, value in load_scoring_weights(folder).items():
            assert torch.equal(value, best[at][name])


def test_what_a_killed_writer_left_is_cleared_by_the_next_start(tmp_path: Path) -> None:
    spec = spec_of(report_every=1)
    cut_off(spec, tmp_path)
    left = tmp_path / "training" / RUN / ".step-00000006.0123abcd.tmp"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    train(spec, tmp_path)
    assert folders(tmp_path) == ["step-00000004", "step-00000006"]


def test_a_checkpoint_that_cannot_be_put_in_the_place_of_another_leaves_that_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writing(content: str) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            folder.mkdir()
            (folder / content).touch()

        return write

    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if (path / "second").exists():
            raise OSError("the disk is gone")
        return rename(path, target)

    shelf = Shelf(open_store(str(tmp_path)), 2)
    shelf.put(3, writing("first"))
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StorageError, match=r"step-00000003: .* the disk is gone"):
        shelf.put(3, writing("second"))
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "step-00000003",
        "step-00000003/first",
    ]


# --- where nothing is renamed --------------------------------------------------------------------------------


@pytest.fixture
def bucket() -> Store:
    """A storage in memory, of which `Store` thinks as of an object store."""
    from pyarrow import fs

    filesystem = fs._MockFileSystem()
    filesystem.create_dir("bucket")
    return Store(filesystem, "bucket", "mock://bucket")


def test_an_object_store_keeps_checkpoints_as_a_folder_does(bucket: Store) -> None:
    spec = spec_of(report_every=1)
    prepared = prepared_in_memory(spec)
    train_in_process(spec, prepared, bucket, RUN, None, None, silent)
    shelf = Shelf(bucket.child("training", RUN), 2)
    assert shelf.steps() == [4, 6]
    with shelf.opened(6) as folder:
        assert folder is not None
        assert session_of(spec, folder).start.step == 6
    assert not folder.exists()


def test_an_upload_that_was_cut_off_is_no_checkpoint_and_a_lost_state_is_damage(bucket: Store) -> None:
    spec = spec_of(report_every=1)
    prepared = prepared_in_memory(spec)
    whole = train_in_process(spec, prepared, bucket, RUN, None, None, silent)
    run = bucket.child("training", RUN)
    for name in ("state.json", "weights.safetensors"):
        run.delete_file("step-00000006", name)
    run.write_bytes(b"", "step-00000006", UNFINISHED)
    shelf = Shelf(run, 2)
    assert shelf.find().step == 4 and shelf.find().refused == ()
    shelf.clear()
    assert shelf.steps() == [4]

    again = train_in_process(spec, prepared, bucket, RUN, None, None, silent)
    assert "checkpoint_refused" not in [one["kind"] for one in again.warnings]
    for name, value in whole.weights.items():
        assert torch.equal(again.weights[name], value)
    run.delete_file("step-00000006", "state.json")
    found = Shelf(run, 2).find()
    assert found.step == 4
    assert found.refused[0].startswith("bucket/training/a-run/step-00000006: no state.json")


def test_an_upload_that_fails_once_is_tried_again(bucket: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    upload, failures = shelves._upload, [StorageError("the bucket does not answer")]

    def failing(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        upload(*arguments)

    monkeypatch.setattr(shelves, "_upload", failing)
    monkeypatch.setattr(shelves, "PAUSES_SECONDS", (0.0,))
    spec = spec_of(report_every=1)
    prepared = prepared_in_memory(spec)
    assert train_in_process(spec, prepared, bucket, RUN, None, None, silent).step == 6
    assert Shelf(bucket.child("training", RUN), 2).steps() == [4, 6]


def test_a_store_that_does_not_answer_for_a_while_is_asked_again(
    bucket: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = spec_of(report_every=1)
    train_in_process(spec, prepared_in_memory(spec), bucket, RUN, None, None, silent)
    failures: list[str] = []

    def failing(name: str, times: int) -> None:
        left, method = [*range(times)], getattr(Store, name)

        def call(*arguments: Any) -> Any:
            if left:
                failures.append(name)
                left.pop()
                raise StorageError("the bucket does not answer")
            return method(*arguments)

        monkeypatch.setattr(Store, name, call)

    monkeypatch.setattr(shelves, "PAUSES_SECONDS", (0.0, 0.0))
    failing("list_names", 2)
    copy = storage.shutil.copyfileobj

    def broken_off(*arguments: Any) -> None:
        if failures.count("copy") < 2:
            failures.append("copy")
            raise OSError("the connection was closed")
        copy(*arguments)

    monkeypatch.setattr(storage.shutil, "copyfileobj", broken_off)
    shelf = Shelf(bucket.child("training", RUN), 2)
    assert shelf.find().step == 6
    with shelf.opened(6) as folder:
        assert folder is not None
        verify(folder)
        fetched = shutil.copytree(folder, tmp_path / "fetched")
    assert failures == ["list_names"] * 2 + ["copy"] * 2
    failing("list_names", 2)
    shelf.clear()
    failing("list_names", 2)
    shelf.put(8, lambda folder: shutil.copytree(fetched, folder))
    assert shelf.steps() == [6, 8]
    failing("list_names", 3)
    with pytest.raises(StorageError, match="does not answer"):
        shelf.find()


def test_an_upload_that_had_just_begun_is_no_checkpoint(bucket: Store) -> None:
    run = bucket.child("training", RUN)
    run.child("step-00000002").make_dir()
    shelf = Shelf(run, 2)
    assert shelf.find() == Found()
    shelf.clear()
    assert shelf.steps() == []
