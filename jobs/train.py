"""`atelier train CONF`: the whole path from a corpus to a registered model."""

from __future__ import annotations

import json
from typing import Annotated

import psutil
import typer

from jobs.options import Address, Conf, Debug, Overrides
from jobs.terminal import Terminal, run_job


def train(
    conf: Conf,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the spec and the plan; do nothing.")] = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Prepare, train, score, record, register and report; run again after a crash, it continues."""

    def job(terminal: Terminal) -> str:
        from pipeline.spec import load_spec

        spec = load_spec(conf, overrides)
        from pipeline.outcome import score_lines, verdict_in_words
        from pipeline.planning import plan
        from pipeline.workflow import train_job

        if dry_run:
            planned = plan(spec)
            terminal.console.print(spec.as_yaml(), highlight=False)
            terminal.console.print_json(json.dumps(planned))
            return json.dumps({"spec": spec.as_dict(), "plan": planned}, ensure_ascii=False)
        outcome = train_job(spec, terminal, address, since=psutil.Process().create_time())
        for line in score_lines(outcome.metrics):
            terminal.console.print(line, highlight=False)
        if outcome.verdict is not None:
            terminal.console.print(f"  {verdict_in_words(outcome.verdict)}", highlight=False)
        terminal.console.print(f"  report  {outcome.report}\n  model   {outcome.model_uri}", highlight=False)
        return outcome.as_json()

    run_job(job, debug)
