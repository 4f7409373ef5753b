"""What is frozen stays as it was, bit for bit, until its time comes; a pattern that matches nothing is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import SpecError
from pipeline.models import build_model
from pipeline.spec import RunSpec
from pipeline.training.checkpoint import Position
from pipeline.training.freezing import Freezing
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from pipeline.training.steps import Stepper
from tests.conftest import CELLS, cell_spec, prepared_in_memory
from tests.saved_checkpoints import local_checkpoints

FIRST = {"rnn": "embedding.*", "vae": "encoder.*", "gan": "critic.encoder.body.0.*"}
"""Parameters of a family that may stand still while the others learn."""


def frozen_spec(family: str, modality: str, **transfer: Any) -> RunSpec:
    pattern = "embedding.*" if (family, modality) == ("vae", "text") else FIRST[family]
    settings = {"weight_decay": 0.1, "ema_decay": 0.9, "transfer": {"freeze": [pattern], **transfer}}
    return cell_spec(family, modality, **settings)


def session_of(spec: RunSpec, resume_from: Path | None = None) -> Session:
    return Session(spec, prepared_in_memory(spec), resume_from=resume_from)


class Watching(LocalHooks):
    """Keeps the weights at every report."""

    def __init__(self, spec: RunSpec, stepper: Stepper) -> None:
        super().__init__(spec)
        self.stepper = stepper
        self.seen: dict[int, dict[str, torch.Tensor]] = {}

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        self.seen[at.step] = {name: value.clone() for name, value in self.stepper.state.weights().items()}


@pytest.mark.parametrize(("family", "modality"), CELLS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_parameters_stay_bit_for_bit_and_all_others_learn(family: str, modality: str, optimizer: str) -> None:
    spec = frozen_spec(family, modality)
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"optimizer": optimizer})})
    session = session_of(spec)
    before = {name: value.clone() for name, value in session.stepper.state.weights().items()}
    frozen = session.stepper.frozen
    session.run(LocalHooks(spec))
    after, average = session.stepper.state.weights(), session.stepper.state.average
    assert frozen and frozen < before.keys()
    assert {name for name, value in before.items() if torch.equal(after[name], value)} == frozen
    assert all(torch.equal(average[name], before[name]) for name in frozen if name in average)


@pytest.mark.parametrize(("family", "modality"), CELLS)
def test_parameters_train_from_their_share_on(family: str, modality: str) -> None:
    pattern = "embedding.*" if (family, modality) == ("vae", "text") else FIRST[family]
    spec = frozen_spec(family, modality, unfreeze={pattern: 0.5})
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"report_every": 1})})
    session = session_of(spec)
    before = {name: value.clone() for name, value in session.stepper.state.weights().items()}
    hooks = Watching(spec, session.stepper)
    frozen = session.stepper.frozen
    session.run(hooks)
    for step, weights in hooks.seen.items():
        stood = {name for name in frozen if torch.equal(weights[name], before[name])}
        assert stood == (frozen if step <= 3 else set()), step


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


class KilledAfter(LocalHooks):
    """Hooks that end the run after its first checkpoint, a step later than was saved."""

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        if self.folder is not None and local_checkpoints(self.folder):
            raise Killed


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(("family", "modality"), CELLS)
def test_a_run_resumed_in_mid_schedule_equals_one_left_alone(
    family: str, modality: str, share: float, tmp_path: Path
) -> None:
    pattern = "embedding.*" if (family, modality) == ("vae", "text") else FIRST[family]
    spec = frozen_spec(family, modality, unfreeze={pattern: share}, lr_scales={pattern: 0.1})
    whole = session_of(spec)
    whole.run(LocalHooks(spec))
    with pytest.raises(Killed):
        session_of(spec).run(KilledAfter(spec, tmp_path))
    (saved,) = local_checkpoints(tmp_path)
    resumed = session_of(spec, saved)
    assert resumed.start.step == 3
    resumed.run(LocalHooks(spec))
    for name, value in whole.stepper.state.scoring_weights().items():
        assert torch.equal(resumed.stepper.state.scoring_weights()[name], value), name


def test_a_scale_multiplies_what_a_step_moves() -> None:
    plain = {"optimizer": "sgd", "schedule": "constant", "steps": 1, "checkpoint_every": 1}
    moved: dict[float, torch.Tensor] = {}
    for scale in (1.0, 0.25):
        spec = cell_spec(
            "vae", "image", **plain, transfer={"lr_scales": {"decoder.*": 0.5, "decoder.stem.*": 2 * scale}}
        )
        session = session_of(spec)
        before = session.stepper.state.weights()["decoder.stem.weight"].clone()
        session.run(LocalHooks(spec))
        moved[scale] = session.stepper.state.weights()["decoder.stem.weight"] - before
    torch.testing.assert_close(moved[0.25], 0.25 * moved[1.0])


def test_a_pattern_that_matches_nothing_is_told_with_the_names_near_it() -> None:
    spec = cell_spec("vae", "image")
    model = build_model(spec, prepared_in_memory(spec).layout)
    wrong = {"freeze": ["encoder.bodies.*"], "unfreeze": {"decoder.*": 0.5}, "lr_scales": {"heads.weight": 2.0}}
    with pytest.raises(SpecError) as refused:
        Freezing(model, cell_spec("vae", "image", transfer=wrong).training.transfer)
    told = str(refused.value)
    assert "training.transfer.freeze: 'encoder.bodies.*' matches no parameter; near it: encoder.body" in told
    assert "training.transfer.unfreeze: 'decoder.*' matches no parameter that training.transfer.freeze freezes" in told
    assert "training.transfer.lr_scales: 'heads.weight' matches no parameter; near it: encoder.head.weight" in told


def test_a_phase_with_nothing_to_train_is_refused() -> None:
    spec = cell_spec("gan", "image", transfer={"freeze": ["critic.*"]})
    with pytest.raises(SpecError, match="leaves phase 'critic' nothing to train"):
        session_of(spec)
