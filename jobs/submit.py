"""`atelier submit VERB …`: run a command as a job on a Ray cluster, and end as it ends."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from jobs.arguments import as_words, parse_command
from jobs.cluster import ClusterAddress, show
from jobs.options import Debug
from jobs.terminal import Terminal, run_job

Verb = Literal["prepare", "train", "tune", "evaluate", "generate", "retrain"]
TAKES_ANY = {"allow_extra_args": True, "ignore_unknown_options": True}


def submit(
    context: typer.Context,
    verb: Annotated[Verb, typer.Argument(help="The command; its own arguments and options follow it.")],
    address: ClusterAddress = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id, and leave it running.")] = False,
    env: Annotated[list[str], typer.Option(metavar="NAME", help="A variable that the job needs.")] = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Check a command here, run it on a cluster, show its log, pass on its answer and exit code; Ctrl-C stops it.

    For example: atelier submit train conf/image_vae.yaml --set training.num_workers=2 --address http://HEAD:8265
    """
    command, values = parse_command(verb, context.args)
    code = 0

    def job(terminal: Terminal) -> str:
        nonlocal code
        from pipeline.operations.submit import check_request, job_environment, packed

        request = check_request(verb, {**values, "debug": debug})
        environment = job_environment(env, request.stop_seconds)
        for note in request.notes:
            show(f"{note}\n")
        with packed(request.confs) as folder:
            from pipeline.operations.cluster import attend, connect, send

            client = connect(address)
            job_id = send(client, verb, as_words(command, request.values), folder, environment)
        show(f"job {job_id} on {client.get_address()}\n")
        if no_wait:
            return json.dumps({"job_id": job_id, "address": client.get_address()})
        ended = attend(client, job_id, show)
        code = ended.exit_code
        return ended.answer

    try:
        run_job(job, debug)
    except typer.Exit as left:
        raise typer.Exit(left.exit_code or code) from None
