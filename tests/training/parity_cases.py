"""Trainings in which any split of the work must give the same: over workers, over micro-batches, over shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.spec import RunSpec, make_spec
from pipeline.training.checkpoint import Position
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from pipeline.training.steps import Stepper
from tests.conftest import MODALITIES, cell_spec, gan_with_options, lane_spec, window_spec
from tests.saved_checkpoints import local_checkpoints

STEPS = 20
CASES = ["vae-image", "vae-text", "gan-audio", "gan-text", "rnn-image", "rnn-carried", "rnn-windows"]
CASES += [f"gan-{modality}-options" for modality in MODALITIES]
CASES += ["vae-options-image", "vae-options-text"]
PLAIN = tuple(CASES)
SINGLE = "single:"
"""Cases in single precision. All others are in double precision: a Wasserstein critic's loss does not depend on
its last bias, and Adam divides the rounding noise of that gradient by its own size, into full steps of random
sign. In double precision the noise is far below Adam's epsilon; in single precision the GAN is shown with SGD."""
THAWING = "thawing:"
"""Cases in which a part of the network is frozen until half of the training is done."""
CASES += [f"{THAWING}{case}" for case in ("vae-image", "gan-audio", "rnn-carried")]
FROZEN = {"vae-image": "encoder.*", "gan-audio": "*.0.*", "rnn-carried": "embedding.*"}
ROLLED, STOPPED = "rolled:", "stopped:"
"""Cases that explode and go back together, and that stop together at their best weights."""
CASES += [f"{ROLLED}vae-image", f"{ROLLED}rnn-carried", f"{ROLLED}{THAWING}vae-image", f"{STOPPED}vae-image"]
CASES += [f"{SINGLE}{case}" for case in ("vae-image", "gan-audio", "rnn-carried")]
ACCUMULATED = "accumulated:"
"""Cases in which a worker takes its share of a batch in parts: one worker its 8 examples as 3, 3 and 2, each of two
workers its 4 as 2 and 2. They are held against one pass."""
CASES += [f"{ACCUMULATED}{case}" for case in (*PLAIN, f"{THAWING}gan-audio", f"{ROLLED}rnn-carried")]
FOUND = "found:"
"""Cases in which the number that is taken at once is looked for, by all workers together."""
CASES += [f"{FOUND}vae-image", f"{FOUND}gan-image-options"]


def spec_of(case: str) -> RunSpec:
    settings: dict[str, Any] = {"steps": STEPS, "ema_decay": 0.9, "clip_norm": 1.0, "warmup_steps": 3, "lr": 1e-2}
    if case.startswith(ACCUMULATED):
        case = case.removeprefix(ACCUMULATED)
        settings["micro_batch"] = 3
    if case.startswith(FOUND):
        case = case.removeprefix(FOUND)
        settings["micro_batch"] = "auto"
    if case.startswith(SINGLE):
        case = case.removeprefix(SINGLE)
        settings["optimizer"] = "sgd" if case.startswith("gan") else "adamw"
    if case.startswith(ROLLED):
        case = case.removeprefix(ROLLED)
        # Found by the rules of health and not by the loss alone, which one worker looks at in every step, and two do
        # when they report.
        settings |= {"health": {"rollback": True, "lr_factor": 1e-8}, "clip_norm": None, "report_every": 4}
        settings |= {"checkpoint_every": 8, "lr": 1e-2 if case.startswith(THAWING) else 1e6}
    if case.startswith(STOPPED):
        case = case.removeprefix(STOPPED)
        settings |= {"early_stopping": {"patience": 1, "min_delta": 1e9}, "validate_every": 4}
    if case.startswith(THAWING):
        case = case.removeprefix(THAWING)
        # What explodes once it is thawed is frozen again at the checkpoint before.
        scale = 1e8 if "health" in settings else 0.5
        settings["transfer"] = {"freeze": [FROZEN[case]], "unfreeze": {FROZEN[case]: 0.5}, "lr_scales": {"*": 0.5}}
        settings["transfer"]["lr_scales"] |= {FROZEN[case]: scale}
    if case == "rnn-carried":
        return lane_spec(**settings)
    if case == "rnn-windows":
        return window_spec(**settings)
    if case.startswith("vae-options"):
        return _vae_with_all_options(case.rsplit("-", 1)[1], settings)
    family, modality, *options = case.split("-")
    if options:
        return gan_with_options(modality, **settings)
    return cell_spec(family, modality, **settings)


def _vae_with_all_options(modality: str, settings: dict[str, Any]) -> RunSpec:
    spec = cell_spec("vae", modality, **settings).as_dict()
    spec["model"]["family"] |= {"prior": "flow", "importance_samples": 2, "aggressive_steps": 2, "dropout": 0.2}
    spec["model"]["family"] |= {"kl_warmup": 0.5, "kl_cycles": 2, "free_bits_nats": 0.1, "word_dropout": 0.3}
    spec["model"]["condition"] = {"on": ["label"], "size": 3, "dropout": 0.3}
    return make_spec(spec)


class SavedByOne(LocalHooks):
    """Hooks of one rank: the one with a folder saves, the others take part in what a checkpoint asks of all."""

    def checkpoint(self, at: Position, stepper: Stepper) -> None:
        if self.saver is None and stepper.world_size > 1:
            stepper.state.global_carry()
        super().checkpoint(at, stepper)


def save_end(session: Session, path: Path) -> None:
    """Keep the weights that a bundle would get, and the carried state of all lanes; a collective, rank 0 writes."""
    weights, carry = session.stepper.state.bundled_weights(), session.stepper.state.global_carry()
    if session.stepper.rank == 0:
        tensors = {**weights, **{f"carry{i}": part for i, part in enumerate(carry)}}
        path.parent.mkdir(exist_ok=True)
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path)


def assert_same_trainings(one: Path, two: Path) -> None:
    """That two trainings of `SavedByOne`, which saved into these folders, ended alike (`save_end`, beside the folder),
    and left the same checkpoints: the same files, keys and shapes, and numbers, the optimiser's among them."""
    ones, twos = local_checkpoints(one), local_checkpoints(two)
    assert [folder.name for folder in ones] == [folder.name for folder in twos] != []
    pairs = [(Path(f"{one}.safetensors"), Path(f"{two}.safetensors"))]
    for ours, theirs in zip(ones, twos, strict=True):
        pairs += [(file, theirs / file.name) for file in sorted(ours.glob("*.safetensors"))]
    for ours, theirs in pairs:
        expected, seen = load_file(ours), load_file(theirs)
        assert expected.keys() == seen.keys()
        for name, value in expected.items():
            torch.testing.assert_close(seen[name], value, rtol=0, atol=1e-5)
