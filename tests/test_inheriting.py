"""Which model `training.init_from` names: a bundle, or a checkpoint with the codec of its run's prepared set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.data.prepared import Prepared
from pipeline.errors import RegistryError, TransferError
from pipeline.generation.sampling import load_bundle, save_bundle
from pipeline.inheriting import check_origin, donor_of, find_origin
from pipeline.spec import RunSpec
from pipeline.storage import open_store
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from tests.evaluation.conftest import MLP, PICTURES, pictures, prepare_small, spec_of

__all__ = ["prepare_small", "spec_of"]

VAE = {"kind": "vae", "latent_size": 3}
NO_MLFLOW = "sqlite:///none.db"


@pytest.fixture
def trained(spec_of: Callable[..., RunSpec], prepare_small: Callable, tmp_path: Path) -> tuple[RunSpec, Prepared, Path]:
    """A spec, its prepared set, and the folder of a run's checkpoints in the same storage."""
    spec = spec_of(PICTURES, VAE, MLP)
    steps = {"steps": 4, "checkpoint_every": 2, "batch_size": 8, "ema_decay": 0.5}
    spec = spec.model_copy(update={"training": spec.training.model_copy(update=steps)})
    prepared = prepare_small(spec, {"train": pictures(40), "test": pictures(8, seed=1)})
    folder = tmp_path / "storage" / "training" / "run-1"
    Session(spec, prepared).run(LocalHooks(spec, folder))
    return spec, prepared, folder


def test_a_runs_folder_is_its_newest_checkpoint_with_the_codec_of_its_set(
    trained: tuple[RunSpec, Prepared, Path], tmp_path: Path
) -> None:
    spec, prepared, folder = trained
    open_store(str(tmp_path / "storage")).write_json({"prepared": prepared.key}, "runs", "run-1", "run.json")
    origin = find_origin(str(folder), NO_MLFLOW, tmp_path / "into")
    assert origin.source == str(folder / "step-00000004")
    bundle = load_bundle(origin.folder)
    assert bundle.spec == spec and bundle.codec.state() == prepared.codec.state()
    older = find_origin(str(folder / "step-00000002"), NO_MLFLOW, tmp_path / "older")
    newer, before = donor_of(origin.folder).weights, donor_of(older.folder).weights
    assert newer.keys() == before.keys() and not all(torch.equal(newer[name], before[name]) for name in newer)


def test_a_checkpoint_whose_set_is_not_there_is_refused(
    trained: tuple[RunSpec, Prepared, Path], tmp_path: Path
) -> None:
    _, _, folder = trained
    with pytest.raises(TransferError, match=r"the prepared set that .*runs/run-1 names, which cannot be read"):
        find_origin(str(folder), NO_MLFLOW, tmp_path / "into")
    open_store(str(tmp_path / "storage")).write_json({"prepared": "gone"}, "runs", "run-1", "run.json")
    with pytest.raises(TransferError, match="there is no prepared set"):
        find_origin(str(folder), NO_MLFLOW, tmp_path / "into")


def test_a_bundle_is_found_where_it_is_and_a_folder_of_nothing_is_refused(
    trained: tuple[RunSpec, Prepared, Path], tmp_path: Path
) -> None:
    spec, prepared, _ = trained
    weights = Session(spec, prepared).stepper.state.weights()
    bundle = save_bundle(tmp_path / "bundle", spec, prepared.manifest.as_dict(), weights)
    origin = find_origin(str(bundle), NO_MLFLOW, tmp_path / "into")
    assert Path(origin.source) == origin.folder == bundle.resolve()
    donor = donor_of(origin.folder)
    assert donor.layout == prepared.layout and donor.meanings == ()
    with pytest.raises(RegistryError, match="the folder has no"):
        find_origin(str(tmp_path / "storage"), NO_MLFLOW, tmp_path / "into")


def test_a_donor_that_is_not_there_is_missed_before_anything_is_prepared(
    trained: tuple[RunSpec, Prepared, Path], tmp_path: Path
) -> None:
    spec, _, folder = trained

    def beginning_with(donor: Path) -> RunSpec:
        return spec.model_copy(update={"training": spec.training.model_copy(update={"init_from": str(donor)})})

    check_origin(beginning_with(folder), NO_MLFLOW)
    with pytest.raises(RegistryError, match="the folder is not there"):
        check_origin(beginning_with(tmp_path / "nowhere"), NO_MLFLOW)
