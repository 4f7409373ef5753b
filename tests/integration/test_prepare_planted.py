"""Real corpora with copies, broken files and personal data planted in them: all are found, and nothing else is lost."""

from __future__ import annotations

import io
import lzma
import random
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared
from pipeline.spec import RunSpec, make_spec
from pipeline.storage import Store, open_store
from tests.conftest import SHARED_DATA
from tests.planted import personal_items
from tests.planted_duplicates import near_picture, near_sound, near_text

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real corpora are not here"),
]

ORIGINALS = 600


def texts() -> Iterator[tuple[bytes, Callable[[np.random.Generator], bytes]]]:
    """Passages of plays, and an edited copy of each."""
    pieces = (SHARED_DATA / "text" / "tinyshakespeare.txt").read_text().split("\n\n")
    for start in range(0, len(pieces), 12):
        passage = "\n\n".join(pieces[start : start + 12])
        yield passage.encode(), lambda rng, passage=passage: near_text(passage, rng).encode()


def pictures() -> Iterator[tuple[bytes, Callable[[np.random.Generator], bytes]]]:
    """JPEGs, and each re-encoded or resized."""
    for data in members("image/cifar10_jpeg.tar.xz", ".jpg"):
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        yield data, lambda rng, pixels=pixels: near_picture(pixels, rng)


def sounds() -> Iterator[tuple[bytes, Callable[[np.random.Generator], bytes]]]:
    """Spoken digits, and each re-sampled or re-encoded."""
    for data in members("audio/fsdd.tar.xz", ".wav"):
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        yield data, lambda rng, samples=samples, rate=rate: near_sound(samples, rate, rng)


def members(name: str, suffix: str) -> Iterator[bytes]:
    with lzma.open(SHARED_DATA / name) as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            if member.name.endswith(suffix):
                extracted = archive.extractfile(member)
                assert extracted is not None
                yield extracted.read()


SUFFIXES = {"text": ".txt", "image": ".jpg", "audio": ".wav"}
SOURCES = {"text": texts, "image": pictures, "audio": sounds}
CODECS: dict[str, dict[str, Any]] = {
    "text": {"kind": "bytes", "packing": "documents", "length": 4096},
    "image": {"kind": "image", "size": [32, 32], "channels": 3},
    "audio": {"kind": "waveform", "num_samples": 8192},
}
REASONS = {"text": "encoding", "image": "not a readable picture", "audio": "sound is cut short|not a readable sound"}


class Planted:
    """A folder of originals with copies of 5% of them exact and of 5% near, and 1% broken files."""

    def __init__(self, kind: str, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.origin_of, self.broken = folder, {}, set()
        rng = np.random.default_rng(0)
        found = list(zip(range(ORIGINALS), SOURCES[kind](), strict=False))
        every = len(found) // (len(found) // 20)
        suffix = SUFFIXES[kind]
        self.secrets: list[str] = []
        items = personal_items(0, len(found)) if kind == "text" else []
        for number, (data, near) in found:
            name = f"original-{number:04d}{suffix}"
            if items and number % 3 == 1:
                # Nowhere near a copy's or a broken file's text, so that each is looked at for itself.
                _, secret = items[number]
                self.secrets.append(secret)
                data += f"\n\nWrite to {secret}\n".encode()
            (folder / name).write_bytes(data)
            copied = {0: ("exact", data), every // 2: ("near", None)}.get(number % every)
            if copied is not None:
                copy = f"{copied[0]}-{number:04d}{suffix}"
                self.origin_of[copy] = name
                (folder / copy).write_bytes(copied[1] if copied[1] is not None else near(rng))
        for number in range(max(2, len(found) // 100)):
            data = found[number * 7 + 3][1][0]
            broken = bytes(random.Random(number).randbytes(4000)) if kind == "text" else data[: len(data) // 3][:200]
            name = f"broken-{number}{suffix}"
            self.broken.add(name)
            (folder / name).write_bytes(broken)


def spec_of(kind: str, folder: Path, duplicates: dict[str, Any]) -> RunSpec:
    family, backbone = ("rnn", "recurrent") if kind == "text" else ("vae", "mlp")
    return make_spec(
        {
            "name": "planted",
            "data": {
                "source": {"kind": "files", "path": str(folder)},
                "codec": CODECS[kind],
                "cleaning": {"text": {"personal_data": "mask"}},
                "duplicates": duplicates,
                "split": {"validation": 0.15, "test": 0.25},
                "max_quarantined": 0.05,
            },
            "model": {"family": {"kind": family}, "backbone": {"kind": backbone}},
        }
    )


def sides(prepared: Prepared) -> dict[str, str]:
    """The split of every origin that the shards hold."""
    found = {}
    for split, entry in prepared.manifest.splits.items():
        for shard in entry["shards"]:
            table = pq.read_table(prepared.store.local_path(shard["file"]), columns=["origin"])
            found |= dict.fromkeys(table["origin"].to_pylist(), split)
    return found


@dataclass
class Whole:
    """A corpus of a kind with all that is planted in it, and its set with every copy kept."""

    kind: str
    planted: Planted
    store: Store
    prepared: Prepared


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp(request.param)
    planted, store = Planted(request.param, folder / "corpus"), open_store(str(folder / "storage"))
    prepared = prepare(spec_of(request.param, planted.folder, {"exact": "keep", "near": "keep"}), store)
    return Whole(request.param, planted, store, prepared)


@pytest.mark.parametrize("whole", SOURCES, indirect=True)
def test_planted_copies_are_found_and_broken_files_are_quarantined(whole: Whole) -> None:
    kind, planted, store = whole.kind, whole.planted, whole.store
    total = len(list(planted.folder.iterdir()))
    side = sides(whole.prepared)
    assert len(side) == total - len(planted.broken)
    report = whole.prepared.manifest.report
    assert {item["origin"] for item in report["quarantined"]} == planted.broken
    assert all(re.search(REASONS[kind], item["reason"]) for item in report["quarantined"])
    parted = [copy for copy, original in planted.origin_of.items() if side[copy] != side[original]]

    kept = sides(prepare(spec_of(kind, planted.folder, {"exact": "drop", "near": "drop"}), store))
    gone = side.keys() - kept.keys()
    # Of a copy and its original the one that comes first in the corpus stays.
    right = {name for copy, original in planted.origin_of.items() for name in (copy, original)}
    found = [copy for copy, original in planted.origin_of.items() if not {copy, original} <= kept.keys()]
    recall, precision = len(found) / len(planted.origin_of), len(gone & right) / len(gone)
    print(f"{kind}: recall {recall:.3f}, precision {precision:.3f} of {len(planted.origin_of)} copies; parted {parted}")
    assert recall >= 0.95 and precision >= 0.98
    assert set(parted) <= set(planted.origin_of) - set(found)  # no cluster crosses a split


@pytest.mark.parametrize("whole", ["text"], indirect=True)
def test_no_planted_personal_data_is_in_any_shard(whole: Whole) -> None:
    planted = whole.planted
    assert len(planted.secrets) > 100
    written = [path for path in whole.store.local_path().rglob("*") if path.is_file()]
    assert written
    masked = whole.prepared.manifest.report["personal_data"]
    assert sum(masked.values()) >= len(planted.secrets)
    for path in written:
        data = path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            column = table["data" if "data" in table.column_names else "x"] if table.num_columns > 2 else None
            if column is None:  # the ids of records.parquet
                continue
            data = b"\n".join(value for value in column.to_pylist() if value is not None)
        leaked = [secret for secret in planted.secrets if secret.encode() in data]
        assert not leaked, f"{path.name} holds {leaked[:3]}"
