"""`atelier chat MODEL_URI`: talk to a model of dialogues."""

from __future__ import annotations

import sys
from typing import Annotated, TextIO

import typer

from jobs.options import Debug, Storage
from jobs.terminal import run_talk


def chat(
    model_uri: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/3, or a bundle's folder.")],
    say: Annotated[list[str], typer.Option(help="Say this and leave; give it again for the next turn.")] = [],  # noqa: B006 - typer copies it
    seed: Annotated[int, typer.Option(help="The same seed gives the same replies.")] = 0,
    temperature: Annotated[float, typer.Option(help="Below 1 safer, above 1 more varied.")] = 0.7,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw within this probability mass.")] = 0.9,
    max_tokens: Annotated[int, typer.Option(help="The longest reply.")] = 200,
    you: Annotated[str | None, typer.Option(help="Your role; by default 'user', else the model's first.")] = None,
    reply_as: Annotated[str | None, typer.Option(help="The model's role; by default the first other.")] = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Stream replies: to what is typed, to lines of a pipe, or to --say. /reset begins anew, /quit or Ctrl-D ends."""

    def conversation(out: TextIO) -> None:
        from pipeline.generation.chat import COMMANDS, fetch, talk
        from pipeline.generation.dialogue import Dialogue
        from pipeline.models.base import SamplingOptions
        from pipeline.release.tracking import resolve_uri
        from pipeline.storage import open_store

        bundle = fetch(model_uri, resolve_uri(open_store(storage or "storage")))
        options = SamplingOptions(temperature, top_k, top_p, length=max_tokens)
        dialogue = Dialogue(bundle, options, seed, you, reply_as)
        interactive = not say and sys.stdin.isatty()
        given = iter(say or sys.stdin)

        def next_line() -> str:
            line = input(f"{dialogue.asks}> ") if interactive else next(given, None)
            if line is None:
                raise EOFError
            return line

        def aside(text: str) -> None:
            print(f"({text})", file=sys.stderr)

        if interactive:
            aside(f"{bundle.spec.name}; {COMMANDS}")
        talk(dialogue, next_line, out, aside, interactive)

    run_talk(conversation, debug)
