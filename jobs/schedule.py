"""`atelier schedule conf/schedule/*.yaml`: keep schedules until stopped, each tick a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import Debug
from jobs.terminal import Terminal, run_job

ScheduleFiles = Annotated[list[Path], typer.Argument(help="Schedules, YAML files such as conf/schedule/*.yaml.")]
StateFile = Annotated[
    Path | None, typer.Option("--state", help="The SQLite file of the schedules' state; by default in their storage.")
]


def schedule(
    schedule_files: ScheduleFiles,
    state: StateFile = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="Print the schedules with their next times; do nothing.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run schedules by their cron expressions; Ctrl-C stops them cleanly, and the same command goes on."""

    def job(terminal: Terminal) -> str:
        from pipeline.operations.schedule_file import load_schedules

        schedules = load_schedules(schedule_files)
        from pipeline.operations.schedule import list_schedules, run_schedules, state_file

        path = state.expanduser().absolute() if state is not None else state_file(schedules)
        if list_only:
            return json.dumps({"state": str(path), "schedules": list_schedules(schedules, path)}, ensure_ascii=False)

        def tell(line: str) -> None:
            terminal.console.print(line, highlight=False, soft_wrap=True, markup=False)

        return json.dumps({"state": str(path), **run_schedules(schedules, path, tell)}, ensure_ascii=False)

    run_job(job, debug)
