"""`atelier lineage`: where a registered model comes from; and which models saw a record."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs.options import Debug, Storage
from jobs.terminal import Terminal, run_job


def lineage(
    model_uri: Annotated[str | None, typer.Argument(help="models:/NAME@champion or models:/NAME/3.")] = None,
    record: Annotated[
        str | None, typer.Option(help="A record's id, its sha256, or a file: which registered models saw it.")
    ] = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """From a model to its data, code and run; or, with --record, from a record to the models."""

    def job(terminal: Terminal) -> str:
        from pipeline.errors import SpecError

        if (model_uri is None) == (record is None):
            raise SpecError("say either a model, such as models:/NAME@champion, or --record with an id or a file")
        from pipeline.release.lineage import describe_lineage, model_lineage, record_lineage

        found = model_lineage(model_uri, storage) if model_uri else record_lineage(str(record), storage)
        terminal.show(describe_lineage(found))
        return json.dumps(found, ensure_ascii=False)

    run_job(job, debug)
