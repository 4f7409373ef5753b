"""A run that begins with another's weights, on a real Ray and a real MLflow: what it took over, what was forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.command_line import run_here, settings

pytestmark = pytest.mark.ray

SMALL = {
    "model.backbone.hidden_size": "16",
    "model.backbone.embedding_size": "8",
    "training.num_workers": "0",
    "training.steps": "12",
    "training.max_seconds": "null",
    "training.report_every": "6",
    "training.checkpoint_every": "6",
    "training.validate_every": "12",
    "data.limit": "20",
    "evaluation.samples": "20",
    "evaluation.max_examples": "100",
}


def train(storage: Path, **keys: str) -> dict[str, Any]:
    told = {"storage": str(storage), **SMALL, **{key.replace("__", "."): value for key, value in keys.items()}}
    overrides = settings(*(f"{key}={value}" for key, value in told.items()))
    code, answer, errors = run_here("train", "conf/text_rnn.yaml", *overrides)
    assert code == 0, errors
    return {**answer, "errors": errors}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def donor(ray_cluster: None, storage: Path) -> dict[str, Any]:
    return train(storage)


@pytest.fixture(scope="module")
def heir(donor: dict[str, Any], storage: Path) -> dict[str, Any]:
    """From the checkpoints of the donor's run, on a text with tokens that the donor never had."""
    text = storage / "dialogues.txt"
    turns = [f"<|user|>How are you, number {turn}?<|system|>Ω: well, thank you." for turn in range(200)]
    text.write_text("\n".join(turns))
    return train(
        storage,
        name="heir",
        registry__name="heir",
        data__source=json.dumps({"kind": "lines", "path": str(text), "record": "line"}),
        data__limit="200",
        data__codec__special_tokens='["<|user|>", "<|system|>"]',
        training__init_from=str(next(iter((storage / "training").iterdir()))),
        training__transfer__freeze='["recurrent.*"]',
        training__transfer__lr_scales='{"head.*": 0.5}',
    )


def test_what_was_taken_over_is_told_everywhere(heir: dict[str, Any], donor: dict[str, Any], storage: Path) -> None:
    from pipeline.release.tracking import read_artifact, read_run

    folder = Path(heir["report"]).parent
    facts = json.loads((folder / "init_from.json").read_text())
    assert set(facts["new_tokens"]) >= {"special <|user|>", "special <|system|>", "Ω"}
    fates = {tensor["name"]: tensor["fate"] for tensor in facts["tensors"]}
    assert fates["embedding.weight"] == fates["head.weight"] == "resized"
    assert fates["recurrent.layers.0.weight_hh_l0"] == "kept" and "new" not in fates.values()
    assert facts["summary"] in " ".join(heir["errors"].split())
    uri = f"sqlite:///{storage}/mlflow.db"
    assert json.loads(read_artifact(uri, heir["run_id"], "init_from.json") or b"{}") == facts
    assert read_run(uri, heir["run_id"]).tags["atelier.init_from"] == facts["source"]
    page = Path(heir["report"]).read_text()
    assert 'id="inherited"' in page and "recurrent.*" in page


def test_the_frozen_part_is_the_donors_bit_for_bit(heir: dict[str, Any], donor: dict[str, Any]) -> None:
    before, after = (load_file(Path(one["report"]).parent / "bundle" / "model.safetensors") for one in (donor, heir))
    frozen = [name for name in after if name.startswith("recurrent.")]
    assert frozen and all(torch.equal(after[name], before[name]) for name in frozen)
    assert after["head.weight"].shape != before["head.weight"].shape


def test_forgetting_is_a_number(heir: dict[str, Any], donor: dict[str, Any]) -> None:
    before, after, lost = (
        heir["metrics"][f"forgetting/bits_per_char_{when}"] for when in ("before", "after", "forgotten")
    )
    assert before == pytest.approx(donor["metrics"]["test/bits_per_char"], rel=0.05)
    assert lost == pytest.approx(after - before)


def test_without_the_old_corpus_it_is_said_so(heir: dict[str, Any], storage: Path) -> None:
    from pipeline.inheriting import score_forgetting
    from pipeline.spec import make_spec
    from pipeline.storage import open_store

    store, key = open_store(str(storage)), Path(heir["report"]).parent.name
    state = store.read_json("runs", key, "run.json")
    facts = store.read_json("runs", key, "init_from.json")
    run = Path(facts["source"]).parent.name
    old = store.local_path("prepared", store.read_json("runs", run, "run.json")["prepared"])
    bundle = Path(heir["report"]).parent / "bundle"
    facts["source"] = str(store.local_path("runs", run, "bundle"))
    store.write_json(facts, "runs", key, "init_from.json")
    old.rename(old.with_name("elsewhere"))
    told = score_forgetting(make_spec(state["spec"]), store, "sqlite://", key, bundle, lambda *_: None)
    assert not told and f"the set {old.name} that" in told.refused["forgetting"]
