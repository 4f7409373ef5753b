"""The folder of one preparation under way: encoded parts and signatures, gone when it ends.

What a killed preparation left is removed by the next one of the same set on that machine.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from pipeline.data.manifest import FOLDER
from pipeline.storage import Store


@contextmanager
def work_folder(store: Store, key: str) -> Iterator[Store]:
    """A folder of this process's own in the storage, while the block runs."""
    host, pid = socket.gethostname(), os.getpid()
    stem = f".work-{key}-{host}-"
    for name in store.list_names(FOLDER):
        if name.startswith(stem) and not psutil.pid_exists(int(name.removeprefix(stem))):
            store.delete_dir(FOLDER, name)
    folder = store.child(FOLDER, f"{stem}{pid}")
    folder.delete_dir()
    folder.make_dir()
    try:
        yield folder
    finally:
        folder.delete_dir()
