"""`atelier report RUN [RUN …]`: the page of a run, or of several runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import Debug, Storage
from jobs.terminal import Terminal, run_job


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…",
            help="An MLflow run's id, a folder's name under STORAGE/runs, or a model: models:/NAME@champion.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Write one HTML page that needs nothing else: a run's report, made anew, or a comparison of 2 to 8 runs."""

    def job(terminal: Terminal) -> str:
        from pipeline.reporting import report_job

        labels = report_job(runs, out, storage, terminal)
        return json.dumps({"report": str(out), "runs": labels, "bytes": out.stat().st_size}, ensure_ascii=False)

    run_job(job, debug)
