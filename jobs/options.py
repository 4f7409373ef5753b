"""Command-line options that several jobs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Conf = Annotated[Path, typer.Argument(help="The spec, a YAML file such as conf/image_vae.yaml.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the spec, e.g. training.lr=3e-4.")
]
Address = Annotated[str | None, typer.Option(help="A Ray cluster to join; by default a local Ray is started.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Storage = Annotated[str | None, typer.Option(help="The storage (a path or URI) where the model and its data are.")]
