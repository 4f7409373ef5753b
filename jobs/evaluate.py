"""`atelier evaluate MODEL_URI`: score a model again on the held-out split of its data."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.options import Address, Debug, Overrides, Storage
from jobs.terminal import Terminal, run_job


def evaluate(
    model_uri: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/3, or a bundle's folder.")],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    storage: Storage = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Score a model on held-out data; evaluation.… may be overridden with --set."""

    def job(terminal: Terminal) -> str:
        from pipeline.rescoring import evaluate_job

        return evaluate_job(model_uri, overrides, storage, terminal, address).as_json()

    run_job(job, debug)
