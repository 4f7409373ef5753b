"""`atelier generate MODEL_URI`: write samples of a model as PNG, TXT or WAV files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import Debug, Storage
from jobs.terminal import Terminal, run_job


def generate(
    model_uri: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/3, or a bundle's folder.")],
    count: Annotated[int, typer.Option(help="How many samples.")] = 16,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("samples"),
    prompt: Annotated[str | None, typer.Option(help="What the samples are to say, or a beginning of texts.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Of which class; several are given in turn.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of each text after the prompt.")] = None,
    temperature: Annotated[float, typer.Option(help="Below 1 safer, above 1 more varied.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw within this probability mass.")] = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Draw samples; beside them an overview picture and provenance.json."""

    def job(terminal: Terminal) -> str:
        from pipeline.generation.batch import generate as draw_files
        from pipeline.models.base import SamplingOptions
        from pipeline.release.tracking import resolve_uri
        from pipeline.storage import open_store

        options = SamplingOptions(temperature, top_k, top_p, length=length)
        uri = resolve_uri(open_store(storage or "storage"))
        provenance = draw_files(model_uri, count, seed, out, options, uri, prompt, label or (), progress=terminal)
        names = ("model_uri", "model_version", "run_id", "seed", "count", "prepared")
        return json.dumps({**{n: provenance[n] for n in names}, "out": str(out)}, ensure_ascii=False)

    run_job(job, debug)
