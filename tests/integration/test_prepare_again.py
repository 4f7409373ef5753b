"""Preparing a corpus that grew, changed, or whose preparation was killed: always the set that one whole pass gives."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import soundfile
import yaml
from PIL import Image

from pipeline.data.difference import difference
from pipeline.data.prepare import prepare
from pipeline.data.prepared import find_prepared
from pipeline.errors import PreparedDataError
from pipeline.spec import RunSpec, load_spec, make_spec
from pipeline.storage import Store, open_store
from tests.command_line import run_here, settings

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

WORDS = [
    f"{a}{b}"
    for a in ["king", "queen", "sword", "night", "crown", "forest", "river", "stone"]
    for b in ("", "s", "ly", "ing")
]


def write_texts(folder: Path, first: int, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        rng = random.Random(number)
        lines = [json.dumps({"text": " ".join(rng.choices(WORDS, k=60))}) for _ in range(40)]
        (folder / f"{number % 7}-{number}.jsonl").write_text("\n".join(lines) + "\n")


def write_pictures(folder: Path, first: int, count: int) -> None:
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        path = folder / "abc"[number % 3] / f"{number % 11}-{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((40, 32), Image.Resampling.BICUBIC).save(path, quality=90)


def write_sounds(folder: Path, first: int, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        soundfile.write(folder / f"{number % 5}-{number}.wav", rng.normal(0, 0.1, 6000).astype(np.float32), 8000)


KINDS: dict[str, tuple[Callable[[Path, int, int], None], dict[str, Any], dict[str, Any]]] = {
    "text": (write_texts, {"kind": "jsonl"}, {"kind": "bpe", "vocabulary_size": 320, "length": 32}),
    "image": (write_pictures, {"kind": "files", "label_from": "folder"}, {"kind": "image", "size": [16, 16]}),
    "audio": (write_sounds, {"kind": "files"}, {"kind": "waveform", "num_samples": 4096, "segments": "all"}),
}


def spec_of(kind: str, corpus: Path, storage: Path, **data: Any) -> RunSpec:
    _, source, codec = KINDS[kind]
    family, backbone = ("rnn", "recurrent") if kind == "text" else ("vae", "mlp")
    return make_spec(
        {
            "name": "again",
            "storage": str(storage),
            "data": {"source": {**source, "path": str(corpus)}, "codec": codec, "shard_megabytes": 0.05, **data},
            "model": {"family": {"kind": family}, "backbone": {"kind": backbone}},
        }
    )


def contents(store: Store, key: str) -> dict[str, str]:
    """The files of a prepared set with their sha256, apart from the facts of one preparation."""
    folder = store.local_path("prepared", key)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "preparation.json"
    }


def facts(store: Store, key: str) -> dict[str, Any]:
    answer: dict[str, Any] = store.read_json("prepared", key, "preparation.json")
    return answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_that_grew_gives_the_set_of_preparing_it_whole(kind: str, tmp_path: Path) -> None:
    write, corpus = KINDS[kind][0], tmp_path / "corpus"
    grown, whole = (open_store(str(tmp_path / name)) for name in ("grown", "whole"))
    write(corpus, 0, 20)
    before = prepare(spec_of(kind, corpus, tmp_path), grown)
    read_before = {path for path in corpus.rglob("*") if path.is_file()}
    write(corpus, 20, 12)
    names = sorted(path for path in corpus.rglob("*") if path.is_file())
    names[3].unlink()
    os.replace(names[5], names[5].with_name(f"0-moved{names[5].suffix}"))
    after = prepare(spec_of(kind, corpus, tmp_path), grown)
    alone = prepare(spec_of(kind, corpus, tmp_path), whole)
    assert after.key == alone.key != before.key
    assert contents(grown, after.key) == contents(whole, alone.key)
    assert any("came" in line for line in difference(before, after)) and difference(after, alone) == []
    # What was read before is not read again.
    new = {path for path in corpus.rglob("*") if path.is_file()} - read_before
    assert 10 < len(new) < 14 and facts(grown, after.key)["files_read"] == len(new)


def test_a_changed_file_is_read_anew_and_what_it_held_is_gone(tmp_path: Path) -> None:
    corpus, store = tmp_path / "corpus", open_store(str(tmp_path / "storage"))
    write_texts(corpus, 0, 5)
    before = prepare(spec_of("text", corpus, tmp_path), store)
    changed = corpus / "3-3.jsonl"
    stamp = changed.stat()
    text = changed.read_text()
    changed.write_text(text.replace("king", "kong"))  # of the same size, and with its old time
    os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = prepare(spec_of("text", corpus, tmp_path), store)
    assert after.key != before.key and facts(store, after.key)["files_read"] == 1
    texts = [
        after.codec.decode(x.numpy()) for split in ("train", "validation", "test") for x in after.load_split(split).x
    ]
    assert any("kong" in text for text in texts)


def test_an_opted_out_record_leaves_the_set_and_what_was_kept_of_it(tmp_path: Path) -> None:
    corpus, store, listed = tmp_path / "corpus", open_store(str(tmp_path / "storage")), tmp_path / "opt-out.txt"
    write_texts(corpus, 0, 4)
    secret = "an unmistakable sentence that its author wants back, told once"
    with open(corpus / "2-2.jsonl", "a") as file:
        file.write(json.dumps({"text": secret}) + "\n")
    cleaning = {"opt_out": str(listed)}
    listed.write_text("# nobody yet\n")
    spec = spec_of("text", corpus, tmp_path, cleaning=cleaning)
    before = prepare(spec, store)
    listed.write_text(hashlib.sha256(secret.encode()).hexdigest() + "\n")
    after = prepare(spec, store)
    assert after.key != before.key and after.manifest.report["dropped"]["opt-out"] == 1
    assert facts(store, after.key)["files_read"] == 4  # those of the part in which it was
    import pyarrow.parquet as pq

    for path in store.local_path("read").rglob("*.parquet"):
        assert all(secret.encode() not in (value or b"") for value in pq.read_table(path)["data"].to_pylist())
    listed.write_text("# and again nobody\n")
    assert contents(store, prepare(spec, store).key) == contents(store, before.key)


def conf_file(spec: RunSpec, path: Path) -> Path:
    path.write_text(yaml.safe_dump(spec.as_dict()))
    return path


def start(conf: Path) -> subprocess.Popen[bytes]:
    """`atelier prepare`, in the Ray of this test."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "jobs", "prepare", str(conf), "--address", address]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.parametrize("victim", ["driver", "worker"])
@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_again_and_again_at_random_moments_it_gives_the_undisturbed_set(
    victim: str, times: int, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    write_texts(corpus, 0, 150)
    quiet = open_store(str(tmp_path / "quiet"))
    key = prepare(spec_of("text", corpus, tmp_path / "quiet"), quiet).key
    wanted = contents(quiet, key)

    disturbed = tmp_path / "disturbed"
    store = open_store(str(disturbed))
    conf = conf_file(spec_of("text", corpus, disturbed), tmp_path / "disturbed.yaml")
    rng = random.Random(0)
    kills = 0
    for _ in range(4 * times):
        if kills == times:
            break
        if rng.random() < 0.5:  # the others go on where the last one was
            shutil.rmtree(disturbed / "read", ignore_errors=True)
        process = start(conf)
        _wait_for(disturbed / "read", process)
        time.sleep(rng.uniform(0, 2))
        if victim == "driver":
            kills += process.poll() is None
            process.kill()
            process.wait()
        else:
            kills += _kill_a_worker(rng, process)
            process.wait(timeout=300)
        found = find_prepared(store, key)
        if found is not None and not found.missing_shards():
            assert contents(store, key) == wanted
            # Begin again from nothing, so that each kill hits a preparation under way.
            shutil.rmtree(disturbed)
    assert kills == times
    assert prepare(load_spec(conf), store).key == key
    assert contents(store, key) == wanted
    assert [name for name in store.list_names("prepared") if name.startswith(".")] == []


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the preparation has begun to read."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


def _kill_a_worker(rng: random.Random, preparing: subprocess.Popen[bytes]) -> bool:
    """SIGKILL for one of Ray's workers while it is at a step of the preparation: the next that is."""
    while preparing.poll() is None:
        below = [process for process in psutil.Process().children(recursive=True) if _is_at_work(process)]
        if below:
            os.kill(rng.choice(below).pid, signal.SIGKILL)
            return True
        time.sleep(0.01)
    return False


def _is_at_work(process: psutil.Process) -> bool:
    # Ray's agents are named ray::… too, and a node whose agent dies goes with it.
    try:
        return process.name().startswith("ray::Map")
    except psutil.Error:
        return False


@pytest.mark.parametrize("damage", ["bit", "missing", "manifest"])
def test_damage_is_found_before_training_and_the_file_is_named(damage: str, tmp_path: Path) -> None:
    corpus, storage = tmp_path / "corpus", tmp_path / "storage"
    write_pictures(corpus, 0, 40)
    spec = spec_of("image", corpus, storage)
    conf = conf_file(spec, tmp_path / "conf.yaml")
    store = open_store(str(storage))
    prepared = prepare(load_spec(conf), store)
    shard = prepared.manifest.splits["train"]["shards"][-1]["file"]
    path = store.local_path("prepared", prepared.key, "manifest.json" if damage == "manifest" else shard)
    whole = contents(store, prepared.key)[path.name]
    if damage == "bit":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "missing":
        path.unlink()
    else:
        text = path.read_text()
        path.write_text(text.replace('"kept": 40', '"kept": 41'))
        assert path.read_text() != text
    small = ["training.num_workers=0", "training.steps=2", "evaluation.nll_samples=2", "evaluation.samples=10"]
    code, answer, errors = run_here("train", str(conf), *settings(*small))
    assert path.name in errors
    if damage == "missing":
        # A set that is not whole is no set: it is said, and made again, the same.
        assert code == 0 and contents(store, prepared.key)[path.name] == whole
        return
    assert code == 1 and answer["kind"] == "PreparedDataError"
    assert not store.exists("training")
    with pytest.raises(PreparedDataError, match=path.name):
        again = find_prepared(store, prepared.key)
        assert again is not None
        again.verify()
