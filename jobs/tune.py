"""`atelier tune conf/search/NAME.yaml`: a campaign of trials over a space of spec keys, and its winner registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import psutil
import typer

from jobs.options import Address, Debug, Overrides
from jobs.terminal import Terminal, run_job

CampaignFile = Annotated[Path, typer.Argument(help="The campaign, a YAML file such as conf/search/image_vae.yaml.")]


def tune(
    campaign_file: CampaignFile,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the campaign and print it; do nothing.")] = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Search learning rates and latent sizes with Ray Tune; run again after a crash, it continues.

    --set overrides keys of the campaign, e.g. budget.trials=20.
    """

    def job(terminal: Terminal) -> str:
        from pipeline.tuning.space import load_campaign

        campaign = load_campaign(campaign_file, overrides)
        if dry_run:
            return json.dumps({"campaign": campaign.spec.model_dump(mode="json"), "objective": campaign.objective})
        from pipeline.outcome import score_lines
        from pipeline.tuning.campaign import tune_job

        outcome = tune_job(campaign, terminal, address, since=psutil.Process().create_time())
        console = terminal.console
        console.print(
            f"  trials  {', '.join(f'{n} {status}' for status, n in outcome.trials.items())}",
            highlight=False,
            soft_wrap=True,
        )
        console.print(
            f"  best    trial {outcome.best['number']}: {outcome.best['values']}", highlight=False, soft_wrap=True
        )
        for line in score_lines(outcome.metrics):
            console.print(line, highlight=False, soft_wrap=True)
        console.print(f"  report  {outcome.report}\n  model   {outcome.model_uri}", highlight=False, soft_wrap=True)
        return outcome.as_json()

    run_job(job, debug)
