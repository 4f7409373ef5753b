"""`atelier schema`: the JSON schema of the spec, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import Debug
from jobs.terminal import Terminal, run_job


def schema(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("conf/schema.json"), debug: Debug = False
) -> None:
    """Write the JSON schema of the spec; the confs name it in their first line, and editors complete from it."""

    def job(terminal: Terminal) -> str:
        from pipeline.spec import json_schema

        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")
        return json.dumps({"schema": str(out)})

    run_job(job, debug)
