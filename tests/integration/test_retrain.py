"""Retraining with real processes, Ray and MLflow: nothing without reason, one decision a crash, promoted if better."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.operations.ledger import Entry, Ledger
from pipeline.storage import open_store
from tests.command_line import Answer, run, run_here

pytestmark = pytest.mark.ray

WORDS = ["the", "a", "red", "blue", "cat", "dog", "house", "runs", "sees", "likes", "under", "over", "and", "then"]
MODEL = "retrained"


class Home:
    """A corpus of lines, a storage, and a schedule file that trains a small language model on the one in the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.storage = folder, folder / "storage"
        self.corpus = folder / "corpus"
        self.corpus.mkdir(parents=True)
        self.lines = 0
        self.random = random.Random(0)
        self.settings = [
            f"storage={self.storage}",
            "data.source.kind=lines",
            f"data.source.path={self.corpus}",
            "data.codec.length=16",
            "data.split={kind: hash, validation: 0, test: 0.2}",
            "model.backbone.hidden_size=16",
            "training.batch_size=8",
            "training.num_workers=0",
            "training.threads_per_worker=1",
            "training.max_seconds=null",
            "training.warmup_steps=0",
            "training.checkpoint_every=1000",
            f"registry.name={MODEL}",
        ]
        self.file = folder / "nightly.yaml"
        self.write_schedule(steps=5)

    def write_schedule(self, steps: int, **keys: Any) -> None:
        conf = str(Path("conf/text_rnn.yaml").absolute())
        tree = {"name": "nightly", "conf": conf, "cron": "0 3 * * *", "warm_start": True, **keys}
        self.file.write_text(yaml.safe_dump({**tree, "set": [*self.settings, f"training.steps={steps}"]}))

    def grow(self, lines: int) -> None:
        """Add records as a new file."""
        text = [" ".join(self.random.choice(WORDS) for _ in range(8)) for _ in range(lines)]
        (self.corpus / f"{self.lines:06d}.txt").write_text("\n".join(text) + "\n")
        self.lines += lines

    def start(self) -> subprocess.Popen[str]:
        """A retraining as a process, in the Ray of this test."""
        import ray

        environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        command = [sys.executable, "-m", "jobs", "retrain", str(self.file), "--once"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def retrain(self, mode: str = "--once", code: int = 0) -> dict[str, Any]:
        """The answer of a retraining, in this process."""
        return self._answer(run_here("retrain", str(self.file), mode), code)

    def retrain_without_ray(self, mode: str = "--once", code: int = 0) -> dict[str, Any]:
        """The answer of a retraining that would fail if it needed Ray: nothing answers at its address."""
        return self._answer(run("retrain", str(self.file), mode, RAY_ADDRESS="127.0.0.1:1"), code)

    def release(self, verb: str, *more: str, code: int = 0) -> dict[str, Any]:
        return self.answer("release", verb, MODEL, "--storage", str(self.storage), *more, code=code)

    def answer(self, *words: str, code: int = 0) -> dict[str, Any]:
        """The answer of another job, in this process."""
        return self._answer(run_here(*words), code)

    def _answer(self, given: Answer, code: int) -> dict[str, Any]:
        seen, answer, errors = given
        assert seen == code, errors
        assert "Traceback" not in errors
        return answer

    def entries(self) -> list[Entry]:
        return Ledger(open_store(str(self.storage)), "nightly").entries

    def kinds(self) -> list[str]:
        return [entry["kind"] for entry in self.entries()]

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(f"file:{self.storage}/mlflow.db?mode=ro", uri=True, timeout=30) as connection:
            return connection.execute(text).fetchall()

    def champion(self) -> str:
        ((version,),) = self.query("SELECT version FROM registered_model_aliases WHERE alias = 'champion'")
        return str(version)

    def versions(self) -> list[int]:
        return [row[0] for row in self.query("SELECT version FROM model_versions ORDER BY version")]

    def runs(self) -> int:
        return int(self.query("SELECT count(*) FROM runs")[0][0])

    def kill_when(self, seen: Callable[[], bool]) -> None:
        """Start a retraining and kill -9 it as soon as `seen`."""
        process = self.start()
        deadline = time.monotonic() + 240
        while not seen():
            assert process.poll() is None, f"it ended before it could be killed: {process.communicate()}"
            assert time.monotonic() < deadline
            time.sleep(0.003)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def finished_runs(self) -> int:
        return sum('"finished"' in path.read_text() for path in self.storage.glob("runs/*/run.json"))


@pytest.fixture(scope="module")
def home(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose champion was trained for five steps on 1,500 lines: the first of the tests below, in their order."""
    home = Home(tmp_path_factory.mktemp("retrain"))
    home.grow(1500)
    return home


def test_the_first_training_becomes_champion(home: Home) -> None:
    dry = home.retrain("--dry-run")
    assert (dry["would"], dry["reason"]) == ("train", f"there is no champion of '{MODEL}' yet")
    assert not home.storage.exists()
    answer = home.retrain()
    assert (answer["decision"], answer["challenger"], home.champion()) == ("first", "1", "1")
    assert home.kinds() == ["begun", "decided"]


def test_with_an_unchanged_corpus_nothing_is_trained_and_ray_is_not_started(home: Home) -> None:
    runs = home.runs()
    answer = home.retrain_without_ray()
    assert answer["decision"] == "unchanged"
    assert "no record is new" in answer["reason"]
    assert home.kinds() == ["begun", "decided", "unchanged"]
    assert home.entries()[-1]["reason"] == answer["reason"]
    assert (home.runs(), home.versions()) == (runs, [1])


def test_too_few_new_records_are_counted_and_not_enough(home: Home) -> None:
    home.grow(75)
    answer = home.retrain_without_ray()
    assert answer["decision"] == "unchanged"
    assert answer["change"] == {"basis": "records", "share": 75 / 1575, "new": 75, "records": 1575, "gone": 0}


def test_with_a_fifth_more_records_a_better_challenger_is_promoted_with_its_figures(home: Home) -> None:
    from mlflow import MlflowClient

    home.grow(225)
    home.write_schedule(steps=120)
    answer = home.retrain()
    assert answer["decision"] == "promoted", answer["reason"]
    comparison = answer["comparison"]
    assert comparison["metric"] == "nats_per_token"
    assert 0 < comparison["interval"][0] < comparison["gain"] < comparison["interval"][1]
    assert comparison["gain"] == pytest.approx(comparison["champion"] - comparison["challenger"])
    assert answer["change"]["new"] == 300
    assert answer["held_out"]["trained_on"] == 0 and answer["held_out"]["records"] > 200
    assert (home.champion(), home.versions()) == ("2", [1, 2])

    client = MlflowClient(f"sqlite:///{home.storage}/mlflow.db", f"sqlite:///{home.storage}/mlflow.db")
    tags = client.get_run(answer["run_id"]).data.tags
    assert tags["atelier.decision"] == "promoted"
    assert tags["atelier.init_from"] == f"models:/{MODEL}/1"
    assert client.get_model_version(MODEL, "2").tags["atelier.decision.reason"] == answer["reason"]
    assert "decision.json" in {item.path for item in client.list_artifacts(answer["run_id"])}
    # The challenger began with the champion's weights: its first report is below what five steps had reached.
    (first, *_) = client.get_metric_history(answer["run_id"], "train/loss")
    assert first.value < comparison["champion"]


def test_a_challenger_that_gains_too_little_is_held_and_not_trained_again(home: Home) -> None:
    home.grow(300)
    home.write_schedule(steps=5, compare={"min_gain": 10.0})
    answer = home.retrain()
    assert answer["decision"] == "held" and "not above 10" in answer["reason"]
    assert (home.champion(), home.versions()) == ("2", [1, 2, 3])
    runs = home.runs()
    again = home.retrain_without_ray()
    assert again["decision"] == "unchanged" and f"entry {answer['entry']} has already decided" in again["reason"]
    assert (home.runs(), home.versions()) == (runs, [1, 2, 3])


def test_killed_between_training_and_promotion_it_makes_one_version_and_one_decision(home: Home) -> None:
    home.grow(300)
    home.write_schedule(steps=150)
    finished, entries = home.finished_runs(), len(home.entries())
    home.kill_when(lambda: home.finished_runs() > finished)
    assert home.kinds()[entries:] == ["begun"], "it was killed too late"
    assert (home.champion(), home.versions()) == ("2", [1, 2, 3, 4])
    runs = home.runs()
    assert home.retrain("--dry-run")["would"] == "continue"

    answer = home.retrain()
    assert answer["decision"] == "promoted", answer["reason"]
    assert (home.champion(), home.versions(), home.runs()) == ("4", [1, 2, 3, 4], runs)
    assert home.kinds()[entries:] == ["begun", "resumed", "decided"]
    steps = home.query(f"SELECT step FROM metrics WHERE run_uuid = '{answer['run_id']}' AND key = 'train/loss'")
    assert len(steps) == len(set(steps)) == 3
    assert home.retrain()["decision"] == "unchanged"


def test_killed_after_promotion_it_still_makes_one_decision(home: Home) -> None:
    home.grow(400)
    home.write_schedule(steps=400)
    entries = len(home.entries())
    home.kill_when(lambda: home.champion() != "4")
    answer = home.retrain()
    assert (home.champion(), home.versions()) == ("5", [1, 2, 3, 4, 5])
    kinds = home.kinds()[entries:]
    assert kinds.count("decided") == 1 and kinds[0] == "begun"
    assert answer["decision"] == ("promoted" if "resumed" in kinds else "unchanged")


def test_a_second_process_waits_its_turn_and_a_changed_corpus_ends_what_was_begun(home: Home) -> None:
    home.grow(500)
    home.write_schedule(steps=3000)
    entries = len(home.entries())
    process = home.start()
    try:
        deadline = time.monotonic() + 240
        while len(home.entries()) == entries:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        refused = home.retrain(code=2)
        assert refused["kind"] == "LedgerError" and f"process {process.pid} is at this retraining" in refused["error"]
    finally:
        process.kill()
        process.communicate()
    home.grow(100)
    home.write_schedule(steps=5, compare={"min_gain": 10.0})
    answer = home.retrain()
    assert answer["decision"] == "held"
    assert home.kinds()[entries:] == ["begun", "abandoned", "begun", "decided"]


def test_an_edited_ledger_is_refused_before_anything_is_moved(home: Home) -> None:
    home.grow(2000)
    before = (home.champion(), home.versions(), home.runs())
    path = sorted((home.storage / "retrain" / "nightly" / "ledger").iterdir())[1]
    kept = path.read_text()
    path.write_text(kept.replace("first", "held"))
    for mode in ("--once", "--dry-run"):
        refused = home.retrain_without_ray(mode, code=2)
        assert refused["kind"] == "LedgerError" and str(path) in refused["error"]
    assert (home.champion(), home.versions(), home.runs()) == before
    path.write_text(kept)
    assert home.retrain("--dry-run")["would"] == "train"


def test_the_gate_can_be_asked_by_hand_and_a_promotion_taken_back(home: Home) -> None:
    before = home.champion()
    shown = home.release("show")
    assert shown["champion"] == before == shown["releases"][-1]["version"] and shown["unfinished"] is None
    assert [release["kind"] for release in shown["releases"]] == ["first", "promotion", "promotion", "promotion"]
    assert {each["version"]: each["decision"] for each in shown["versions"]}["3"] == "held"

    answer = home.release("decide", "--version", "1")
    assert answer["decision"] == "held" and "not above 0 with 95% confidence" in answer["reason"]
    assert "| improve | `nats_per_token` |" in answer["table"] and home.champion() == before
    assert home.release("decide", "--version", before, code=2)["kind"] == "RegistryError"

    back = home.release("rollback", "--reason", "a test")
    assert (back["before"], home.champion()) == (before, back["version"]) and home.champion() != before
    limited = home.release("decide", "--version", before, "--set", "release.limits={bits_per_char: {at_most: 0.1}}")
    assert limited["decision"] == "rejected" and "must be at most 0.1" in limited["reason"]
    again = home.release("decide", "--version", before)
    assert again["decision"] == "promoted" and home.champion() == before
    assert [release["kind"] for release in home.release("show")["releases"][-2:]] == ["rollback", "promotion"]


def test_a_model_leads_to_its_data_and_a_record_to_its_models(home: Home, tmp_path: Path) -> None:
    storage = ("--storage", str(home.storage))
    found = home.answer("lineage", f"models:/{MODEL}@champion", *storage)
    prepared = home.storage / "prepared" / found["data"]["prepared"]
    assert found["data"]["in_storage"] == str(prepared)
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert found["data"]["manifest_sha256"] == manifest["sha256"]
    shards = {shard["file"] for split in found["data"]["splits"].values() for shard in split["shards"]}
    assert shards == {path.name for path in prepared.glob("*-0*.parquet")}
    assert found["began_with"][-1] == f"models:/{MODEL}/1"

    (tmp_path / "record.txt").write_text((home.corpus / "000000.txt").read_text().splitlines()[0] + "\n")
    models = home.answer("lineage", "--record", str(tmp_path / "record.txt"), *storage)["models"]
    assert len(models) == len(home.versions())
    splits = {tuple(each["splits"]) for each in models}
    assert splits in ({("train",)}, {("test",)})
