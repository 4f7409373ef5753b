"""`atelier` as tests call it: as a process, like a user, or in this one, where heavy imports and Ray's workers are
paid for once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

import pytest

from jobs.__main__ import app

Answer = tuple[int, dict[str, Any], str]


def settings(*overrides: str) -> list[str]:
    """`key.path=value` as arguments."""
    return [part for override in overrides for part in ("--set", override)]


def run(*arguments: str, **environment: str) -> Answer:
    """A process, as a user starts it: exit code, last line of stdout, stderr."""
    result = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )
    last = result.stdout.splitlines()[-1] if result.stdout else "{}"
    return result.returncode, json.loads(last), result.stderr


def run_here(*arguments: str) -> Answer:
    """The same in this process, joining its Ray if it has one; what a job does to its process is undone."""
    kept, handler = (os.dup(1), os.dup(2)), signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        try:
            streams = contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors)
            with streams[0], streams[1], pytest.raises(SystemExit) as left:
                app(list(arguments), prog_name="atelier")
        finally:
            for number, saved in enumerate(kept, start=1):
                os.dup2(saved, number)
                os.close(saved)
            signal.signal(signal.SIGTERM, handler)
        output.seek(0)
        errors.seek(0)
        return int(left.value.code or 0), json.loads((output.read().splitlines() or ["{}"])[-1]), errors.read()
