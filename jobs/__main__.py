"""`atelier` and `python -m jobs`: the commands, one module each."""

from __future__ import annotations

import typer

from jobs.chat import chat
from jobs.cluster import jobs
from jobs.doctor import doctor
from jobs.evaluate import evaluate
from jobs.generate import generate
from jobs.lineage import lineage
from jobs.prepare import prepare
from jobs.release import release
from jobs.report import report
from jobs.retrain import retrain
from jobs.schedule import schedule
from jobs.schema import schema
from jobs.submit import TAKES_ANY, submit
from jobs.train import train
from jobs.tune import tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train generative models on your own text, pictures and sound with Ray, and keep them in MLflow.",
)
for command in (prepare, train, evaluate, generate, chat, report, tune, retrain, schedule, lineage, schema, doctor):
    app.command()(command)
app.command(context_settings=TAKES_ANY)(submit)
app.add_typer(jobs, name="jobs")
app.add_typer(release, name="release")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
