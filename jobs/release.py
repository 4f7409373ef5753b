"""`atelier release VERB NAME`: gate a version against the champion, show what was released, take it back."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Annotated

import typer

from jobs.options import Address, Debug, Overrides, Storage
from jobs.terminal import Terminal, run_job

release = typer.Typer(no_args_is_help=True, help="What becomes champion: decide by the gate, show, roll back.")
Name = Annotated[str, typer.Argument(help="The registered model, such as image-vae.")]


@release.command()
def decide(
    name: Name,
    version: Annotated[str | None, typer.Option(help="The version to decide on; by default the challenger.")] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    storage: Storage = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Compare a version with the champion, and promote, hold or reject it; --set changes release.… for once."""

    def job(terminal: Terminal) -> str:
        outcome = _operations().decide_job(name, version, overrides, storage, terminal, address)
        terminal.show(f"{outcome.table}\n\n{outcome.decision}: {outcome.reason}")
        answer: str = outcome.as_json()
        return answer

    run_job(job, debug)


@release.command()
def show(name: Name, storage: Storage = None, debug: Debug = False) -> None:
    """What was released, and what was decided on each version."""
    run_job(lambda _: json.dumps(_operations().show(name, storage), ensure_ascii=False), debug)


@release.command()
def rollback(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Take the last promotion back: the version before is champion again."""
    run_job(lambda _: json.dumps(_operations().rollback_job(name, reason, storage), ensure_ascii=False), debug)


def _operations() -> ModuleType:
    from pipeline.operations import release as operations

    return operations
