"""Corpora behind a URI: on a real S3 server on loopback they give what they give from a folder."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import CorpusError
from pipeline.storage import Store, open_store
from tests.data.corpora import corpus_of, records_of


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server_module = pytest.importorskip("moto.server", reason="moto's S3 server is not installed")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"scheme=http&endpoint_override={host}%3A{port}&region=us-east-1&allow_bucket_creation=true"
    open_store(f"s3://corpora-test/?{options}").filesystem.create_dir("corpora-test")
    yield f"s3://corpora-test/PATH?{options}"
    server.stop()


def packed_tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def as_parquet(rows: list[str]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": rows}), stream, row_group_size=2)
    return stream.getvalue()


def as_npz() -> bytes:
    stream = io.BytesIO()
    pictures = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4)
    np.savez_compressed(stream, x_train=pictures[:4], x_test=pictures[4:], y_train=np.arange(4), y_test=np.arange(2))
    return stream.getvalue()


FRENCH = "les garçons fermés\n".encode("cp1252")
CORPORA: dict[str, tuple[str, dict[str, bytes], dict[str, Any]]] = {
    "files": ("text", {f"{n % 3}/a b {n}.txt": f"text {n}".encode() for n in range(6)}, {"label_from": "folder"}),
    "lines": ("text", {"a.txt": b"one\ntwo\n" * 50 + FRENCH, "b.txt.gz": gzip.compress(FRENCH)}, {}),
    "jsonl": ("text", {"a.jsonl": b'{"text": "a"}\n' * 9, "b.jsonl.gz": gzip.compress(b'{"text": "b"}\n')}, {}),
    "csv": ("text", {"a.csv": b"text\n" + FRENCH}, {}),
    "tar": ("text", {"a.tar.gz": packed_tar({"x/1.txt": b"one", "x/2.txt": FRENCH})}, {"file": "a.tar.gz"}),
    "parquet": ("text", {"a.parquet": as_parquet(["a", "b", "c"]), "b.parquet": as_parquet(["d"])}, {}),
    "npz": ("image", {"a.npz": as_npz()}, {"file": "a.npz"}),
}


def laid_out(kind: str, bucket: str, folder: Path) -> tuple[Any, Any, Store]:
    """The same corpus in a folder and on S3, and the store that the latter lies in."""
    modality, files, keys = CORPORA[kind]
    file = keys.get("file")
    keys = {key: value for key, value in keys.items() if key != "file"}
    store = open_store(bucket.replace("PATH", kind))
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        store.write_bytes(data, *name.split("/"))
    remote = bucket.replace("PATH", f"{kind}/{file}" if file else kind)
    local = str(folder / file) if file else str(folder)
    return (
        corpus_of(modality, kind=kind, path=local, **keys),
        corpus_of(modality, kind=kind, path=remote, **keys),
        store,
    )


@pytest.mark.parametrize("kind", CORPORA)
def test_a_corpus_on_s3_gives_what_it_gives_from_a_folder(kind: str, bucket: str, tmp_path: Path) -> None:
    local, remote, _ = laid_out(kind, bucket, tmp_path)
    here, there = records_of(local), records_of(remote)
    keys = ("origin", "id", "label", "split", "error", "name", "index", "facts")
    assert [[record[key] for key in keys] for record in there] == [[record[key] for key in keys] for record in here]
    assert len(there) > 0 and not any(record["error"] for record in there)
    assert remote.fingerprint() == corpus_of(remote.modality, **remote.source.model_dump()).fingerprint()
    assert [file.size for file in remote.files()] == [file.size for file in local.files()]


@pytest.mark.parametrize("kind", ["files", "lines", "parquet", "tar"])
def test_an_object_that_changed_after_the_fingerprint_is_never_read(kind: str, bucket: str, tmp_path: Path) -> None:
    _, remote, store = laid_out(kind, bucket, tmp_path)
    units = remote.units()
    name = remote.files()[0].name
    # Of another size: `files` is not told apart by ETag, and the server's times are of a second.
    store.write_bytes(CORPORA[kind][1][name] + b"\n", *name.split("/"))
    with pytest.raises(CorpusError, match=rf"changed while it was being prepared: .*{name}"):
        for unit in units:
            list(remote.read(unit))
    assert "?" not in remote.location.shown


def test_what_is_not_on_s3_is_one_clear_error(bucket: str) -> None:
    with pytest.raises(CorpusError, match="there is no such file or folder"):
        corpus_of("text", kind="lines", path=bucket.replace("PATH", "nothing/here"))
    with pytest.raises(CorpusError, match=r"data\.source\.path: .*nowhere://"):
        corpus_of("text", kind="lines", path="nowhere://at/all")


def test_a_packed_file_is_stored_on_s3_as_it_is(bucket: str) -> None:
    store = open_store(bucket.replace("PATH", "packed"))
    store.write_bytes(gzip.compress(b"text"), "a.gz")
    assert gzip.decompress(store.read_bytes("a.gz")) == b"text"
