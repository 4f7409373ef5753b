"""What a killed writer leaves behind is told from what another is still writing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from pipeline.storage import open_store


def test_only_what_the_dead_were_writing_is_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    for name in (
        f"train-0.parquet.{host}-{dead.pid}-0123abcd.tmp",
        f"train-1.parquet.{host}-{os.getpid()}-0123abcd.tmp",
        f"train-2.parquet.elsewhere-{dead.pid}-0123abcd.tmp",
        "train-3.parquet",
    ):
        (tmp_path / name).write_bytes(b"x")
    open_store(str(tmp_path)).sweep()
    assert sorted(path.name.split(".")[0] for path in tmp_path.iterdir()) == ["train-1", "train-2", "train-3"]


def test_a_killed_writer_leaves_a_name_that_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pipeline.storage import open_store\n"
        "with open_store(sys.argv[1]).open_output('a.parquet') as sink:\n"
        "    sink.write(b'half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    open_store(str(tmp_path)).sweep()
    assert list(tmp_path.iterdir()) == []
