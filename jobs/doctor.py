"""`atelier doctor [CONF]`: is everything there that a run needs, on this machine or on every node of a cluster?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import Address, Debug, Overrides
from jobs.terminal import Terminal, run_job

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    conf: Annotated[
        Path | None, typer.Argument(help="The spec to check for; without it, what every run needs.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Check versions, storage, MLflow, resources, data, disks and shared memory; says what to do. 1 if one fails."""
    failed: list[str] = []

    def job(terminal: Terminal) -> str:
        from rich.table import Table
        from rich.text import Text

        from pipeline.errors import SpecError
        from pipeline.spec import load_spec

        if conf is None and overrides:
            raise SpecError("--set changes a key of a conf: name the conf, as in atelier doctor conf/image_vae.yaml")
        spec = load_spec(conf, overrides) if conf else None
        from pipeline.operations.doctor import doctor_job

        found = doctor_job(spec, terminal, address)
        failed.extend(check.name for check in found if check.status == "fail")
        table = Table("check", "", "what was seen", "what to do", show_edge=False, pad_edge=False)
        for check in found:
            status = Text(check.status, style=COLOURS[check.status])
            table.add_row(check.name, status, Text(check.seen), Text(check.do))
        terminal.console.print(table)
        return json.dumps({"checks": [check.as_dict() for check in found], "ok": not failed}, ensure_ascii=False)

    try:
        run_job(job, debug)
    except typer.Exit as leaving:
        raise typer.Exit(leaving.exit_code or int(bool(failed))) from None
