"""Which code runs: the package's version and, in a checkout, the git commit. Stamped on runs and on scores.

In whichever process asks; git is asked once.
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pipeline


@functools.cache
def git_commit() -> str:
    """The checkout's commit, 40 hexadecimal digits; empty outside of one."""
    return _git("rev-parse", "HEAD")


@functools.cache
def git_modified() -> bool:
    """Whether files of the package differ from the commit."""
    return bool(_git("status", "--porcelain", "--", "."))


def code_version() -> str:
    """`0.1.0`, in a checkout `0.1.0+1a2b3c4d5e6f`, and with `.modified` where its files are not those of the commit."""
    commit = git_commit()
    if not commit:
        return pipeline.__version__
    return f"{pipeline.__version__}+{commit[:12]}{'.modified' if git_modified() else ''}"


def _git(*arguments: str) -> str:
    folder = str(Path(pipeline.__file__).parent)
    try:
        result = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
