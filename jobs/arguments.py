"""The words of a command line, read and written: a job that is submitted runs the same command elsewhere."""

from __future__ import annotations

import importlib
from typing import Any

import typer

NOT_SENT = ("address",)


def parse_command(verb: str, words: list[str]) -> tuple[Any, dict[str, Any]]:
    """The command `verb` and the values of its options in `words`; a mistake ends as it does for the command itself."""
    app = typer.Typer(add_completion=False)
    app.command()(getattr(importlib.import_module(f"jobs.{verb}"), verb))
    command = typer.main.get_command(app)
    with command.make_context(f"atelier submit {verb}", list(words)) as context:
        return command, dict(context.params)


def as_words(command: Any, values: dict[str, Any]) -> list[str]:
    """The words that give `command` these values."""
    words: list[str] = []
    for parameter in command.params:
        value = values.get(parameter.name)
        if parameter.name in NOT_SENT or value is None:
            continue
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif parameter.is_flag:
            words += parameter.opts[:1] if value else parameter.secondary_opts[:1]
        else:
            several = value if isinstance(value, list | tuple) else [value]
            words += [f"{parameter.opts[0]}={getattr(one, 'value', one)}" for one in several]
    return words
