"""`atelier prepare CONF`: read, clean, split and encode a corpus into sharded data."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs.options import Address, Conf, Debug, Overrides
from jobs.terminal import Terminal, run_job

Diff = Annotated[str | None, typer.Option(metavar="KEY", help="Say what is otherwise than in this prepared set.")]


def prepare(
    conf: Conf,
    overrides: Overrides = [],  # noqa: B006
    diff: Diff = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Prepare the corpus of a spec, or find it prepared; prints its data card."""

    def job(terminal: Terminal) -> str:
        from pipeline.spec import load_spec

        spec = load_spec(conf, overrides)
        from pipeline.workflow import EXAMPLES, prepare_job

        prepared, watch = prepare_job(spec, terminal, address)
        from pipeline.data.card import card_text
        from pipeline.data.difference import difference
        from pipeline.data.prepared import open_prepared
        from pipeline.storage import open_store

        manifest = prepared.manifest
        terminal.show(card_text(manifest.as_dict()))
        seen = prepared.store.path(EXAMPLES) if prepared.store.exists(EXAMPLES) else None
        if seen is not None:
            terminal.show(f"{'examples':<20} {seen}")
        changed = None
        if diff is not None:
            changed = difference(open_prepared(open_store(spec.storage), diff), prepared)
            terminal.show("\n".join(changed) or "nothing is different")
        splits = {name: entry["rows"] for name, entry in manifest.splits.items()}
        return json.dumps(
            {
                "prepared": prepared.key,
                "folder": prepared.store.uri,
                "splits": splits,
                "report": manifest.report,
                "examples": seen,
                "diff": changed,
                "seconds": watch.with_total(),
            },
            ensure_ascii=False,
        )

    run_job(job, debug)
