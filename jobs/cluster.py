"""`atelier jobs list|logs|stop`: the jobs of a Ray cluster."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from jobs.options import Debug
from jobs.terminal import Terminal, run_job

ClusterAddress = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The cluster's dashboard: http://HEAD:8265, or RAY_API_SERVER_ADDRESS."),
]
JobId = Annotated[str, typer.Argument(help="A job's id, as 'atelier jobs list' shows it.")]
Follow = Annotated[bool, typer.Option("--follow", help="Go on until the job ends; Ctrl-C leaves it running.")]

jobs = typer.Typer(no_args_is_help=True, help="The jobs of a cluster: list them, read a log, stop one.")


def show(text: str) -> None:
    """Write what a job says where the user reads it."""
    sys.stderr.write(text)
    sys.stderr.flush()


@jobs.command("list")
def list_(address: ClusterAddress = None, debug: Debug = False) -> None:
    """Show the jobs that were submitted, the newest first."""
    from pipeline.operations import cluster

    def job(_: Terminal) -> str:
        found = cluster.list_jobs(cluster.connect(address))
        for one in found:
            show(f"{one['job_id']:<30} {one['status']:<10} {one['started'] or '':<20} {one['command']}\n")
        return json.dumps({"jobs": found}, ensure_ascii=False)

    run_job(job, debug)


@jobs.command()
def logs(job_id: JobId, address: ClusterAddress = None, follow: Follow = False, debug: Debug = False) -> None:
    """Show the log of a job on stderr."""
    from pipeline.operations import cluster

    def job(_: Terminal) -> str:
        return json.dumps({"job_id": job_id, **cluster.show_log(cluster.connect(address), job_id, show, follow)})

    run_job(job, debug)


@jobs.command()
def stop(job_id: JobId, address: ClusterAddress = None, debug: Debug = False) -> None:
    """Stop a job, and wait until its processes are gone; its MLflow run is marked KILLED."""
    from pipeline.operations import cluster

    run_job(lambda _: json.dumps({"job_id": job_id, "status": cluster.stop(cluster.connect(address), job_id)}), debug)
