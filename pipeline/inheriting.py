"""What a run takes over from another model: which one `training.init_from` names, its weights, what became of them.

Runs in the driver, before training is launched; a call after a crash finds what the first one did.  [mlflow]
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import AtelierError, PreparedDataError, StorageError, TransferError
from pipeline.progress import Progress
from pipeline.spec import RunSpec, make_spec
from pipeline.storage import Store, open_store

if TYPE_CHECKING:
    from pipeline.data.prepared import Prepared
    from pipeline.evaluation.metric import Scores
    from pipeline.models.surgery import Donor
    from pipeline.release.recorder import RunRecorder

FACTS = "init_from.json"
"""The file of a run's folder, and of its MLflow run, that says what it took over from which model."""


@dataclass(frozen=True)
class Origin:
    """The model that `training.init_from` names: `source`, a name that no alias moves, and the bundle's `folder`."""

    source: str
    folder: Path


def find_origin(init_from: str, tracking_uri: str, into: Path) -> Origin:
    """The bundle of the model that `init_from` names, below `into` unless it lies on this machine.

    Takes what `release.finding.find` takes, a checkpoint's folder, or the folder of a run's checkpoints, of which the
    newest. Raises: RegistryError, TransferError on a checkpoint whose prepared set is not there, CheckpointError.
    """
    from pipeline.release.finding import download, find

    if checkpoints := _checkpoints(init_from):
        newest = max(checkpoints).resolve()
        return Origin(str(newest), _bundle_of_checkpoint(newest, into))
    found = find(init_from, tracking_uri)
    source = found.model_uri if "://" in found.location or found.name else found.location
    return Origin(source, download(found, tracking_uri, into))


def check_origin(spec: RunSpec, tracking_uri: str) -> None:
    """Look whether the model that `training.init_from` names is there, before a corpus is prepared in vain.

    Raises: RegistryError.
    """
    from pipeline.release.finding import find

    init_from = spec.training.init_from
    if init_from is not None and not _checkpoints(init_from):
        find(init_from, tracking_uri)


def _checkpoints(init_from: str) -> list[Path]:
    """The folders of checkpoints that `init_from` is, or holds."""
    from pipeline.training.checkpoint import STATE

    folder = Path(init_from).expanduser()
    return [path.parent for path in (*folder.glob(f"step-*/{STATE}"), folder / STATE) if path.is_file()]


def _bundle_of_checkpoint(checkpoint: Path, into: Path) -> Path:
    """A bundle of the weights for scores in a checkpoint, with the manifest of the prepared set that its run names."""
    from pipeline.data.prepared import open_prepared
    from pipeline.generation.sampling import save_bundle
    from pipeline.training.checkpoint import load_scoring_weights, read_state

    spec = make_spec(read_state(checkpoint)["spec"], where=str(checkpoint))
    run = checkpoint.parent
    store = open_store(str(run.parent.parent))
    what = f"the codec that it was trained with is in the prepared set that {store.path('runs', run.name)} names"
    try:
        key = store.read_json("runs", run.name, "run.json")["prepared"]
        manifest = open_prepared(store, key).manifest
    except (StorageError, KeyError, PreparedDataError) as error:
        raise TransferError(
            f"training.init_from {str(checkpoint)!r}: {what}, which cannot be read ({error}); name a checkpoint where "
            "its run left it, or the run's bundle"
        ) from error
    return save_bundle(into / "checkpoint", spec, manifest.as_dict(), load_scoring_weights(checkpoint))


def donor_of(folder: Path) -> Donor:
    """What surgery needs of the bundle in `folder`. Raises: RegistryError when a file is missing or was changed."""
    import safetensors.torch

    from pipeline.data.codec import codec_from_state
    from pipeline.data.layout import Layout
    from pipeline.generation.sampling import MANIFEST, WEIGHTS, read_checked
    from pipeline.models.surgery import Donor

    files, _ = read_checked(folder)
    manifest = json.loads(files[MANIFEST])
    meanings = codec_from_state(manifest["codec"]).meanings()
    return Donor(Layout.from_dict(manifest["layout"]), meanings, safetensors.torch.load(files[WEIGHTS]))


def take_over(
    spec: RunSpec,
    store: Store,
    prepared: Prepared,
    tracking_uri: str,
    key: str,
    recorder: RunRecorder,
    progress: Progress,
) -> str | None:
    """The weights that the run `key` begins with, kept in the storage; the name to read them by, None for new ones.

    What was kept, resized and made new goes to the terminal, the run's folder and MLflow, with the version that the
    weights were of: an alias in the spec may name another one tomorrow. Raises: as `find_origin` and `inherit`.
    """
    from pipeline.models.surgery import inherit
    from pipeline.training.initial import keep_weights

    init_from = spec.training.init_from
    if init_from is None:
        return None
    facts = facts_of(store, key)
    if not facts:
        with tempfile.TemporaryDirectory() as temporary:
            origin = find_origin(init_from, tracking_uri, Path(temporary))
            try:
                weights, inheritance = inherit(
                    spec, prepared.layout, prepared.codec.meanings(), donor_of(origin.folder)
                )
            except TransferError as error:
                raise TransferError(f"training.init_from {init_from!r}: {error}") from None
            name = keep_weights(store, weights)
        facts = {"init_from": init_from, "source": origin.source, "weights": name, **inheritance.as_dict()}
        store.write_json(facts, "runs", key, FACTS)
    recorder.log_tags({"atelier.init_from": facts["source"]})
    recorder.log_json(facts, FACTS)
    progress("init_from", 1, 1, f"{facts['source']}: {facts['summary']}")
    return str(facts["weights"])


def facts_of(store: Store, key: str) -> dict[str, Any]:
    """What the run `key` took over from which model; empty when it began with new weights."""
    return dict(store.read_json("runs", key, FACTS)) if store.exists("runs", key, FACTS) else {}


def score_forgetting(
    spec: RunSpec, store: Store, tracking_uri: str, key: str, heir: Path, progress: Progress
) -> Scores:
    """What the run `key` forgot of the corpus of the model that it began with, where that corpus is in the storage.

    `heir` is the folder of its bundle. Empty for a run that began with new weights; why there is no score is among the
    refused ones.
    """
    from pipeline.data.prepared import find_prepared
    from pipeline.evaluation.forgetting import forgetting
    from pipeline.evaluation.metric import Scores
    from pipeline.generation.sampling import MANIFEST

    facts = facts_of(store, key)
    if not facts:
        return Scores()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            donor = find_origin(facts["source"], tracking_uri, Path(temporary)).folder
            old_key = json.loads((donor / MANIFEST).read_bytes())["key"]
            old = find_prepared(store, old_key)
            if old is not None:
                return forgetting(spec, old, donor, heir, progress)
            why = f"the set {old_key} that {facts['source']} learned from is not in {store.uri}"
    except AtelierError as error:  # a score that cannot be had does not undo a training
        why = str(error)
    progress("forgetting", 1, 1, why)
    return Scores(refused={"forgetting": f"Forgetting: {why}"})
