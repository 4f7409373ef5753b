"""What a retraining decides by: records counted by their content, the champion's age, what was tried."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.data.manifest import FOLDER, FORMAT_VERSION, Manifest, prepared_key
from pipeline.data.prepared import Prepared, Records
from pipeline.data.records import content_id
from pipeline.data.splits import assign_split
from pipeline.errors import PreparedDataError
from pipeline.operations.decisions import held_out, identity, make_plan, open_base_corpus, trained_on_test
from pipeline.operations.schedule_file import Retraining, load_retraining
from pipeline.release.champion import Champion
from pipeline.spec import make_spec
from pipeline.storage import Store, open_store

DAY = 86_400


def retraining_of(folder: Path, **keys: Any) -> Retraining:
    tree = {
        "name": "nightly",
        "conf": str(Path("conf/text_rnn.yaml").absolute()),
        "cron": "0 3 * * *",
        "set": [f"storage={folder / 'storage'}", "data.source.kind=lines", f"data.source.path={folder / 'corpus'}"],
        **keys,
    }
    (folder / "nightly.yaml").write_text(yaml.safe_dump(tree))
    return load_retraining(folder / "nightly.yaml")


def write_corpus(folder: Path, lines: list[str]) -> None:
    (folder / "corpus").mkdir(exist_ok=True)
    (folder / "corpus" / "a.txt").write_text("\n".join(lines) + "\n")


def pretend_prepared(retraining: Retraining, lines: list[str], keep_records: bool = True) -> tuple[Store, Champion]:
    """The manifest (without shards) that preparing the corpus as it is would write, and a champion of it."""
    store = open_store(retraining.base.storage)
    corpus = open_base_corpus(retraining.base)
    key = prepared_key(retraining.base, corpus)
    folder = store.child(FOLDER, key)
    ids = [content_id(line) for line in lines]
    records = Records.of(ids, [assign_split(each, None, retraining.base.data.split) for each in ids])
    about: dict[str, Any] = {"fingerprint": corpus.fingerprint()}
    if keep_records:
        about["records"] = records.save(folder)
    splits = {name: {"records": len(records.on(name)), "shards": []} for name in ("train", "validation", "test")}
    split = retraining.base.data.split.model_dump(mode="json")
    manifest = Manifest(FORMAT_VERSION, key, about, {}, {}, split, {}, {}, splits, {"read": len(lines)})
    folder.write_json(manifest.as_dict(), "manifest.json")
    return store, Champion("text-rnn", "3", "run", key, time.time() - 2 * DAY)


@pytest.fixture
def lines() -> list[str]:
    return [f"line {number}" for number in range(100)]


def test_new_changed_and_gone_records_are_counted_by_content(tmp_path: Path, lines: list[str]) -> None:
    write_corpus(tmp_path, lines)
    retraining = retraining_of(tmp_path)
    store, champion = pretend_prepared(retraining, lines)
    # Two changed, ten new, one gone, all in another order: 12 of 109.
    changed = [*reversed(lines[3:]), "line 1, changed", "line 2, changed", *(f"new {n}" for n in range(10))]
    write_corpus(tmp_path, changed)
    plan = make_plan(retraining, store, champion, [])
    assert plan.change is not None
    assert (plan.change.basis, plan.change.new, plan.change.records, plan.change.gone) == ("records", 12, 109, 3)
    assert plan.train and "12 of 109 records (11.0%) are new or changed, 3 are gone" in plan.reason


@pytest.mark.parametrize(("new", "trains"), [(10, False), (12, True)])
def test_the_share_of_new_records_sets_a_training_off(tmp_path: Path, lines: list[str], new: int, trains: bool) -> None:
    write_corpus(tmp_path, lines)
    retraining = retraining_of(tmp_path)
    store, champion = pretend_prepared(retraining, lines)
    write_corpus(tmp_path, lines + [f"new {number}" for number in range(new)])
    assert make_plan(retraining, store, champion, []).train == trains


@pytest.mark.parametrize(("days", "trains"), [(1.9, True), (2.1, False)])
def test_an_old_champion_sets_a_training_off(tmp_path: Path, lines: list[str], days: float, trains: bool) -> None:
    write_corpus(tmp_path, lines)
    retraining = retraining_of(tmp_path, trigger={"max_age_days": days})
    store, champion = pretend_prepared(retraining, lines)
    plan = make_plan(retraining, store, champion, [])
    assert plan.train == trains and "2.0 days" in plan.reason


def test_a_set_from_before_records_were_kept_counts_as_unknown(tmp_path: Path, lines: list[str]) -> None:
    write_corpus(tmp_path, lines)
    retraining = retraining_of(tmp_path)
    store, champion = pretend_prepared(retraining, lines, keep_records=False)
    assert not make_plan(retraining, store, champion, []).train
    write_corpus(tmp_path, lines + [f"new {number}" for number in range(25)])
    plan = make_plan(retraining, store, champion, [])
    assert plan.train and plan.change is not None
    assert (plan.change.basis, plan.change.new, plan.change.share) == ("counts", 25, 0.2)
    assert "unknown" in plan.reason


def test_what_was_decided_is_not_trained_again_unless_the_conf_changes(tmp_path: Path, lines: list[str]) -> None:
    write_corpus(tmp_path, lines)
    retraining = retraining_of(tmp_path)
    store, champion = pretend_prepared(retraining, lines)
    write_corpus(tmp_path, lines + [f"new {number}" for number in range(50)])
    plan = make_plan(retraining, store, champion, [])
    entry = {"number": 7, "kind": "decided", "decision": "held", "identity": identity(retraining), **plan.figures()}
    again = make_plan(retraining, store, champion, [entry])
    assert not again.train and "entry 7 has already decided" in again.reason
    other = retraining_of(tmp_path, warm_start=False)
    assert make_plan(other, store, champion, [entry]).train


def test_a_challenger_that_is_computed_otherwise_is_the_same_challenger(tmp_path: Path) -> None:
    retraining = retraining_of(tmp_path)
    tree = retraining.base.as_dict()
    tree["training"] |= {"micro_batch": "auto", "compile": True, "tf32": False}
    otherwise = replace(retraining, base=make_spec(tree))
    assert otherwise.base != retraining.base and identity(otherwise) == identity(retraining)
    tree["training"]["lr"] /= 2
    assert identity(replace(retraining, base=make_spec(tree))) != identity(retraining)


def test_a_rejected_first_model_is_not_trained_again_on_the_same_data(tmp_path: Path, lines: list[str]) -> None:
    write_corpus(tmp_path, lines)
    retraining = retraining_of(tmp_path)
    store, _ = pretend_prepared(retraining, lines)
    plan = make_plan(retraining, store, None, [])
    assert plan.train and "no champion" in plan.reason
    entry = {"number": 3, "kind": "decided", "identity": identity(retraining), **plan.figures()}
    for decision, trains in (("rejected", False), ("held", False), ("first", True)):
        again = make_plan(retraining, store, None, [{**entry, "decision": decision}])
        assert again.train == trains
    write_corpus(tmp_path, [*lines, "new"])
    assert make_plan(retraining, store, None, [{**entry, "decision": "rejected"}]).train


def test_records_survive_their_file_and_a_changed_file_is_refused(tmp_path: Path, lines: list[str]) -> None:
    write_corpus(tmp_path, lines)
    retraining = retraining_of(tmp_path)
    store, champion = pretend_prepared(retraining, lines)
    assert champion.prepared is not None
    folder = store.child(FOLDER, champion.prepared)
    prepared = Prepared(folder, Manifest.from_dict(folder.read_json("manifest.json")))
    records = prepared.load_records()
    assert records is not None and len(records.record) == 100
    for split in ("train", "validation", "test"):
        expected = {
            content_id(line)
            for line in lines
            if assign_split(content_id(line), None, retraining.base.data.split) == split
        }
        assert {f"{record:016x}" for record in records.on(split).tolist()} == expected
    path = folder.local_path("records.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(PreparedDataError, match=r"records\.parquet: the file was changed"):
        prepared.load_records()


def test_records_that_changed_side_are_told(tmp_path: Path, lines: list[str]) -> None:
    ids = [content_id(line) for line in lines]
    then = Records.of(ids, ["train"] * 90 + ["test"] * 10)
    now = Records.of(ids, ["train"] * 80 + ["test"] * 20)
    assert trained_on_test(then, then) == 0
    assert trained_on_test(now, then) == 10


def test_a_split_by_hash_keeps_the_champion_off_the_test_split(tmp_path: Path, lines: list[str]) -> None:
    write_corpus(tmp_path, lines)
    retraining = retraining_of(tmp_path)
    store, champion = pretend_prepared(retraining, lines)
    grown = lines + [f"new {number}" for number in range(50)]
    write_corpus(tmp_path, grown)
    _, later = pretend_prepared(retraining, grown)

    def prepared(of: Champion) -> Prepared:
        folder = store.child(FOLDER, str(of.prepared))
        return Prepared(folder, Manifest.from_dict(folder.read_json("manifest.json")))

    checked = held_out(prepared(later), prepared(champion))
    assert checked.trained_on == 0 and "neither model was trained" in checked.note
    assert held_out(prepared(later), None).trained_on is None
