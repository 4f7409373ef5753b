"""Chat: a conversation over lines of text, typed at a terminal, piped, or given at once.  [mlflow through registry]

`atelier chat` calls `talk` in its own process; no Ray. The replies are all that is written to `out`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from pipeline.errors import SpecError
from pipeline.generation.dialogue import Dialogue
from pipeline.generation.sampling import Bundle, load_bundle
from pipeline.release.finding import download, find

COMMANDS = "/reset begins a new conversation, /quit or Ctrl-D ends; Ctrl-C ends a reply"


def fetch(model_uri: str, tracking_uri: str) -> Bundle:
    """The bundle of a registered model, or of a folder. Raises: RegistryError, TrackingError."""
    with tempfile.TemporaryDirectory() as temporary:
        return load_bundle(download(find(model_uri, tracking_uri), tracking_uri, Path(temporary)))


def talk(
    dialogue: Dialogue,
    next_line: Callable[[], str],
    out: TextIO,
    aside: Callable[[str], None],
    interactive: bool,
) -> None:
    """Answer line after line, until `next_line` raises EOFError or gives `/quit`; each reply ends its line in `out`.

    `aside` takes what is for the person alone. At a terminal (`interactive`) Ctrl-C ends the reply that is being
    written, and a question that cannot be answered is said aside; elsewhere both end the conversation.

    Raises: KeyboardInterrupt, SpecError, where it is not interactive.
    """
    told = False
    while True:
        try:
            line = next_line().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            aside(COMMANDS)
            continue
        if line == "/quit":
            return
        if line == "/reset":
            dialogue.reset()
            aside("a new conversation")
        elif line.startswith("/"):
            aside(f"{line}: no such command; {COMMANDS}")
        elif line:
            _answer(dialogue, line, out, aside, interactive)
        if dialogue.num_forgotten and not told:
            told = True
            aside(f"the model reads {dialogue.window} tokens at most: the oldest of what was said is forgotten")


def _answer(dialogue: Dialogue, line: str, out: TextIO, aside: Callable[[str], None], interactive: bool) -> None:
    try:
        reply = dialogue.say(line)
    except SpecError as mistake:
        if not interactive:
            raise
        aside(str(mistake))
        return
    try:
        if interactive:
            out.write(f"{dialogue.answers}> ")
        for piece in reply:
            out.write(piece)
            out.flush()
    except KeyboardInterrupt:
        if not interactive:
            raise
    out.write("\n")
    out.flush()
