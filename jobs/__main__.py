"""`atelier` and `python -m jobs`: the commands, one module each."""

from __future__ import annotations

import typer

from jobs.evaluate import evaluate
from jobs.generate import generate
from jobs.prepare import prepare
from jobs.schema import schema
from jobs.train import train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train generative models on your own text, pictures and sound with Ray, and keep them in MLflow.",
)
for command in (prepare, train, evaluate, generate, schema):
    app.command()(command)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
