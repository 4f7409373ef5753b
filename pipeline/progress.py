"""Progress: what a long step tells its caller while it works, and a no-op for callers that do not listen."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int | None, str], None]
"""Called with the stage, how much is done, of how much (None when unknown) and a short note."""

WARNING = "warning"
"""A stage of its own: each note is said once, as it is, and counts nothing."""


def silent(stage: str, done: int, total: int | None, note: str) -> None:
    """Tell nobody."""
