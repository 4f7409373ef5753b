"""Preparing with a real Ray: whole corpora to shards and back, reuse, and nothing left behind on failure."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from pyarrow import fs as pafs

from pipeline.data.card import card_text
from pipeline.data.prepare import prepare
from pipeline.data.prompts import decode_prompt
from pipeline.errors import AtelierError, CodecError, CorpusError, StorageError
from pipeline.spec import RunSpec, make_spec
from pipeline.storage import Store, open_store
from tests.conftest import SHARED_DATA

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def spec_of(source: dict[str, Any], codec: dict[str, Any], **data: Any) -> RunSpec:
    tokens = codec["kind"] in ("bytes", "characters", "bpe", "raster", "mu_law")
    family, backbone = ("rnn", "recurrent") if tokens else ("vae", "mlp")
    return make_spec(
        {
            "name": "prepare",
            "data": {"source": source, "codec": codec, **data},
            "model": {"family": {"kind": family}, "backbone": {"kind": backbone}},
        }
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "storage"))


def left_behind(store: Store) -> list[str]:
    return store.list_names("prepared")


def picture_folder(root: Path, count: int = 60, broken: int = 0) -> Path:
    random = np.random.default_rng(0)
    for i in range(count):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
        if i < broken:
            path.write_bytes(path.read_bytes()[:50])
    return root


def test_pictures_of_a_folder_come_back_as_they_were_and_a_second_call_writes_nothing(
    tmp_path: Path, store: Store
) -> None:
    folder = picture_folder(tmp_path / "pictures")
    spec = spec_of(
        {"kind": "files", "path": str(folder), "label_from": "folder", "licence": "mine"},
        {"kind": "image", "size": [8, 8]},
        split={"test": 0.3, "validation": 0.1},
        shard_megabytes=16 * 64 / 2**20,
    )
    seen: list[tuple[str, int, int | None, str]] = []
    prepared = prepare(spec, store, lambda *told: seen.append(told))
    manifest = prepared.manifest
    assert sum(entry["rows"] for entry in manifest.splits.values()) == manifest.report["kept"] == 60
    assert manifest.corpus["licence"] == "mine" and prepared.layout.labels == ("a", "b")
    originals = {}
    for path in sorted(folder.rglob("*.png")):
        originals[np.asarray(Image.open(path)).tobytes()] = path.parent.name
    for name in manifest.splits:
        arrays = prepared.load_split(name)
        for x, label in zip(arrays.x, arrays.label.tolist(), strict=True):
            assert originals.pop(x.numpy().tobytes()) == "ab"[label]
    assert not originals
    assert [told[1] for told in seen] == sorted(told[1] for told in seen) and seen[-1][1] == 60

    before = prepared.store.local_path("manifest.json").stat().st_mtime_ns
    again = prepare(spec, store)
    assert again.key == prepared.key
    assert prepared.store.local_path("manifest.json").stat().st_mtime_ns == before

    prepared.store.local_path("train-00000.parquet").unlink()
    mended = prepare(spec, store)
    assert mended.missing_shards() == [] and left_behind(store) == [prepared.key]


def test_a_few_broken_files_are_quarantined_with_their_reason(tmp_path: Path, store: Store) -> None:
    folder = picture_folder(tmp_path / "pictures", broken=2)
    source = {"kind": "files", "path": str(folder)}
    spec = spec_of(source, {"kind": "image", "size": [8, 8]}, max_quarantined=0.1)
    report = prepare(spec, store).manifest.report
    assert (report["read"], report["kept"], report["quarantined_count"]) == (60, 58, 2)
    assert [item["origin"] for item in report["quarantined"]] == ["a/0.png", "b/1.png"]
    assert all("not a readable picture" in item["reason"] for item in report["quarantined"])


def test_the_text_of_every_split_is_whole_in_windows_and_tail(tmp_path: Path, store: Store) -> None:
    text = "".join(chr(97 + i % 7) for i in range(1003))
    (tmp_path / "a.txt").write_text(text)
    prepared = prepare(
        spec_of(
            {"kind": "lines", "path": str(tmp_path / "a.txt"), "record": "file"},
            {"kind": "characters", "length": 16},
            split={"kind": "position", "validation": 0, "test": 0.1},
        ),
        store,
    )
    whole = ""
    for name in ("train", "validation", "test"):
        arrays = prepared.load_split(name)
        whole += prepared.codec.decode(np.concatenate([arrays.x.numpy().reshape(-1), arrays.tail.numpy()]))
    assert whole == text
    assert prepared.manifest.splits["test"]["characters"] == 101
    assert prepared.layout.vocabulary == 8


@pytest.mark.parametrize(
    ("source", "codec", "rows"),
    [
        ("digits", {"kind": "raster", "size": [7, 7]}, 200),
        ("plucked", {"kind": "waveform"}, 200),
        ("plucked", {"kind": "log_mel"}, 200),
        ("plucked", {"kind": "mu_law", "num_samples": 1024}, 200),
        (
            "pydoc",
            {"kind": "bpe", "packing": "documents", "length": 64, "vocabulary_size": 400},
            78,
        ),  # of 79, two of which are the same
        ("pydoc", {"kind": "bytes", "length": 64}, None),
    ],
)
def test_builtin_corpora_prepare_with_every_view(
    source: str, codec: dict[str, Any], rows: int | None, store: Store
) -> None:
    prepared = prepare(spec_of({"kind": "builtin", "name": source}, codec, limit=200), store)
    layout = prepared.layout
    total = 0
    for name in prepared.manifest.splits:
        arrays = prepared.load_split(name)
        assert tuple(arrays.x.shape[1:]) == layout.shape
        total += len(arrays)
        model = layout.to_model(arrays.x)
        assert layout.view == "signal" or int(model.max()) < layout.vocabulary
        assert layout.view == "tokens" or (float(model.min()) >= layout.low and float(model.max()) <= layout.high)
    assert rows is None or total == rows


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    spec = spec_of({"kind": "builtin", "name": "pydoc"}, {"kind": "bpe", "vocabulary_size": 400})
    shards = [prepare(spec, open_store(str(tmp_path / name))).manifest.splits for name in ("one", "two")]
    assert shards[0] == shards[1]


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("truncated", CorpusError, r"30 of 60 records cannot be decoded(.|\n)*not a readable picture"),
        ("empty_wav", CorpusError, r"train split is empty: 0 records were kept of 3 read"),
        ("encoding", CorpusError, r"not utf-8: byte 0xe9"),
        ("too_short", CorpusError, r"fewer than one window"),
        ("no_test", CorpusError, r"the test split is empty"),
        ("rare", CodecError, r"min_count"),
        ("cut_archive", CorpusError, r"cut short"),
        ("full_disk", StorageError, r"No space left"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(
    case: str, error: type[AtelierError], message: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    image = {"kind": "image", "size": [8, 8]}
    text = {"kind": "lines", "path": str(folder)}
    if case == "truncated":
        picture_folder(folder, broken=30)
        spec = spec_of({"kind": "files", "path": str(folder)}, image)
    elif case == "empty_wav":
        import soundfile

        for i in range(3):
            soundfile.write(folder / f"{i}.wav", np.zeros(0), 8000)
        spec = spec_of({"kind": "files", "path": str(folder)}, {"kind": "waveform"})
    elif case == "encoding":
        (folder / "a.txt").write_bytes(b"caf\xe9\n" * 200)
        spec = spec_of({**text, "encoding": "utf-8"}, {"kind": "characters"})
    elif case == "too_short":
        (folder / "a.txt").write_text("a\nb\nc\n")
        spec = spec_of(text, {"kind": "bytes", "length": 1000}, split={"test": 0, "validation": 0})
    elif case == "no_test":
        picture_folder(folder)
        spec = spec_of({"kind": "files", "path": str(folder)}, image, split={"test": 0})
    elif case == "rare":
        (folder / "a.txt").write_text("abc\n" * 20)
        spec = spec_of(text, {"kind": "characters", "min_count": 1000})
    elif case == "cut_archive":
        import lzma

        lines = "".join(f'{{"text": "poem {i * i}"}}\n' for i in range(3000))
        (folder / "a.jsonl.xz").write_bytes(lzma.compress(lines.encode())[:-100])
        spec = spec_of({"kind": "jsonl", "path": str(folder)}, {"kind": "bytes"})
    else:
        picture_folder(folder)
        spec = spec_of({"kind": "files", "path": str(folder)}, image)

        def no_space(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(error, match=message):
        prepare(spec, store)
    assert left_behind(store) == []


def test_a_storage_that_cannot_rename_is_complete_or_has_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Store(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "bucket", "remote://bucket")
    spec = spec_of({"kind": "builtin", "name": "digits"}, {"kind": "image", "size": [8, 8]}, limit=100)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_json", lambda *_: (_ for _ in ()).throw(StorageError("gone")))
        with pytest.raises(StorageError, match="gone"):
            prepare(spec, remote)
    assert left_behind(remote) == []
    prepared = prepare(spec, remote)
    assert left_behind(remote) == [prepared.key]
    assert len(prepared.load_split("train")) > 60


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the real corpora beside the checkout")
def test_the_spoken_digits_have_their_own_test_set(store: Store) -> None:
    prepared = prepare(
        spec_of(
            {
                "kind": "tar",
                "path": str(SHARED_DATA / "audio/fsdd.tar.xz"),
                "label_pattern": r"/(\d)_",
                "test_pattern": r"_[0-4]\.wav$",
            },
            {"kind": "waveform", "num_samples": 1024},
            split={"kind": "given", "validation": 0},
        ),
        store,
    )
    splits = prepared.manifest.splits
    assert (splits["train"]["rows"], splits["test"]["rows"]) == (2700, 300)
    assert splits["test"]["labels"] == {str(digit): 30 for digit in range(10)}


def test_names_say_what_is_said_and_by_whom(tmp_path: Path, store: Store) -> None:
    folder, random = tmp_path / "digits", np.random.default_rng(0)
    folder.mkdir()
    for i in range(60):
        name = f"{i % 3}_{'anna' if i % 4 else 'bert'}_{i}.wav"
        soundfile.write(folder / name, random.uniform(-0.5, 0.5, 256), 8000)
    source = {"kind": "files", "path": str(folder), "label_pattern": r"_([a-z]+)_", "prompt_pattern": r"(\d)_"}
    words = {"0": "zero", "1": "one", "2": "write to two@example.org"}
    spec = spec_of(
        source,
        {"kind": "waveform", "num_samples": 256},
        prompt={"of": "source", "words": words, "length": 24},
        cleaning={"text": {"personal_data": "mask"}},
        split={"test": 0.2, "validation": 0.0},
    )
    prepared = prepare(spec, store)
    layout, manifest = prepared.layout, prepared.manifest
    assert layout.labels == ("anna", "bert") and sum(layout.label_counts) == manifest.splits["train"]["rows"]
    assert set(layout.prompts) == {"zero", "one", "write to [email]"} and layout.prompt_length == 24
    assert list(layout.prompt_counts) == sorted(layout.prompt_counts, reverse=True)
    assert sum(layout.prompt_counts) == manifest.splits["train"]["prompts"]["given"]
    assert manifest.corpus["prompt"]["words"] == words and manifest.report["personal_data"] == {"email": 20}
    said = {"0": "zero", "1": "one", "2": "write to [email]"}
    for name in ("train", "test"):
        arrays = prepared.load_split(name)
        assert arrays.prompt is not None
        table = pq.read_table(prepared.store.local_path(manifest.splits[name]["shards"][0]["file"]))
        for origin, tokens in zip(table["origin"].to_pylist(), arrays.prompt.numpy(), strict=True):
            assert decode_prompt(tokens) == said[origin[0]]
    assert not any(b"example.org" in path.read_bytes() for path in prepared.store.local_path().glob("*.parquet"))
    told = card_text(manifest.as_dict())
    assert f"prompts (train)      {manifest.splits['train']['rows']}, 3 different\n" in told


def test_a_set_without_prompts_keeps_its_place_when_the_model_asks_for_labels_that_are_not_there(
    tmp_path: Path, store: Store
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "number {i}"}}\n' for i in range(60)))
    codec = {"kind": "bytes", "packing": "documents", "length": 16}
    plain = spec_of({"kind": "jsonl", "path": str(path), "label_field": "topic"}, codec)
    asking = make_spec({**plain.as_dict(), "model": {**plain.as_dict()["model"], "condition": {"on": ["label"]}}})
    with pytest.raises(CorpusError, match=r"model\.condition\.on has 'label', and no training example has a label"):
        prepare(asking, store)
    assert left_behind(store) == [prepare(plain, store).key]
