"""`atelier retrain conf/schedule/NAME.yaml --once`: train a challenger if there is reason to; promote it if better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import psutil
import typer

from jobs.options import Address, Debug
from jobs.terminal import Terminal, run_job

ScheduleFile = Annotated[Path, typer.Argument(help="The schedule, a YAML file such as conf/schedule/image_vae.yaml.")]
ScheduleOverrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the schedule, e.g. warm_start=false.")
]


def retrain(
    schedule_file: ScheduleFile,
    overrides: ScheduleOverrides = [],  # noqa: B006 - typer copies it
    once: Annotated[
        bool, typer.Option("--once", help="Decide now, once; 'atelier schedule' does it by the clock.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and why; do nothing.")] = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Compare a newly trained challenger with the champion; run again after a crash, it continues."""

    def job(terminal: Terminal) -> str:
        from pipeline.errors import SpecError
        from pipeline.operations.schedule_file import load_retraining

        retraining = load_retraining(schedule_file, overrides)
        if once == dry_run:
            raise SpecError("say either --once or --dry-run; 'atelier schedule' retrains by the clock")
        from pipeline.operations.retrain import plan_retraining, retrain_job

        if dry_run:
            return json.dumps(plan_retraining(retraining), ensure_ascii=False)
        outcome = retrain_job(retraining, terminal, address, since=psutil.Process().create_time())
        terminal.console.print(f"  {outcome.decision}  {outcome.reason}", highlight=False, soft_wrap=True)
        terminal.console.print(f"  ledger  {outcome.ledger}", highlight=False, soft_wrap=True)
        return outcome.as_json()

    run_job(job, debug)
