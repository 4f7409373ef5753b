"""What the doctor looks at in one process: the driver calls these functions, and so does a task on every node.

`doctor` sends this module by value, so that they also run where this package is missing or another version of it is
installed. Each takes and returns plain values, imports what it needs itself, and raises nothing: a reason is a value.
"""

from __future__ import annotations

from typing import Any

PACKAGES = ("ray", "torch", "mlflow")


def look(session_folder: str, source: str | None) -> dict[str, Any]:
    """Versions, processors, disks, and whether `source` is seen from here; the values of a `checks.Place`."""
    import os
    import shutil

    try:
        disk = shutil.disk_usage(session_folder)
        shm_total = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
    except OSError as error:
        return {"silent": f"its disks cannot be read: {error}"}
    return {
        "host": os.uname().nodename,
        "versions": installed(),
        "processors": len(os.sched_getaffinity(0)),
        "disk_folder": session_folder,
        "disk_total": disk.total,
        "disk_free": disk.free,
        "shm_total": shm_total,
        "source_error": None if source is None else unseen(source),
    }


def unseen(source: str) -> str | None:
    """Why a corpus's path or URI is not seen from here; None when it is."""
    import os

    if "://" in source:
        shown = source.partition("?")[0].rpartition("@")[2]
        try:
            from pyarrow import fs

            filesystem, path = fs.FileSystem.from_uri(source)
            found = filesystem.get_file_info(path).type != fs.FileType.NotFound
        except Exception as error:  # whatever a filesystem raises is what the user has to see
            return f"{shown}: {error}"
        return None if found else f"{shown}: there is no such file or folder"
    if not os.path.exists(source):
        return f"{source}: there is no such file or folder"
    return None if os.access(source, os.R_OK) else f"{source}: no permission to read it"


def installed() -> dict[str, str]:
    """Versions that must agree; this package's with a digest of its sources, which change between releases."""
    import hashlib
    import importlib.metadata
    import platform
    from pathlib import Path

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            # A build for CUDA and one for processors are the same version: 2.13.0+cu128 and 2.13.0+cpu.
            versions[package] = importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not there"
    try:
        import pipeline

        root = Path(pipeline.__file__).parent
        digest = hashlib.sha256()
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
        versions["atelier"] = f"{pipeline.__version__} (sources {digest.hexdigest()[:8]})"
    except Exception as error:  # whatever a broken installation raises is what the user has to see
        versions["atelier"] = f"not there ({error})"
    return versions


def write_mark(uri: str, folder: str, name: str) -> dict[str, Any]:
    """Write `folder`/`name` into the storage; says what went wrong, and whether the storage was made by it."""
    import os

    try:
        from pipeline.storage import open_store

        store = open_store(uri)
        made = store.is_local and not os.path.isdir(store.root)
        store.write_bytes(name.encode(), folder, name)
    except Exception as error:  # see above
        return {"storage_error": str(error) or type(error).__name__, "made": False}
    return {"storage_error": None, "made": made}


def read_marks(uri: str, folder: str) -> dict[str, Any]:
    """Names of the places whose mark is seen and can be read from here."""
    try:
        from pipeline.storage import open_store

        store = open_store(uri)
        names = store.list_names(folder)
        # One is read whole: some filesystems list what they then refuse.
        if names and store.read_bytes(folder, names[-1]) != names[-1].encode():
            return {"storage_error": f"{names[-1]} does not hold what was written to it", "siblings": ()}
    except Exception as error:  # see above
        return {"storage_error": str(error) or type(error).__name__, "siblings": ()}
    return {"siblings": tuple(names)}


def remove_marks(uri: str, folder: str, made: bool) -> None:
    """Leave the storage as it was; where two places share it, the first does it."""
    import contextlib
    import os

    with contextlib.suppress(Exception):
        from pipeline.storage import open_store

        store = open_store(uri)
        store.delete_dir(folder)
        if made:
            os.rmdir(store.root)


def reach_mlflow(uri: str) -> dict[str, Any]:
    """Why MLflow at `uri` does not answer here; nothing when it does, or when its SQLite file can be made."""
    import os
    from pathlib import Path

    try:
        from pipeline.release.tracking import connect

        if uri.startswith("sqlite:///"):
            path = Path(uri.removeprefix("sqlite:///"))
            if not path.exists():
                nearest = next(parent for parent in path.parents if parent.exists())
                writable = nearest.is_dir() and os.access(nearest, os.W_OK)
                return {"mlflow_error": None if writable else f"{path} cannot be made: {nearest} is not writable"}
        connect(uri)
    except Exception as error:  # see above
        return {"mlflow_error": str(error) or type(error).__name__}
    return {"mlflow_error": None}
