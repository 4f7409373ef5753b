"""`atelier prepare CONF`: read, clean, split and encode a corpus into sharded data."""

from __future__ import annotations

import json

from jobs.options import Address, Conf, Debug, Overrides
from jobs.terminal import Terminal, run_job


def prepare(conf: Conf, overrides: Overrides = [], address: Address = None, debug: Debug = False) -> None:  # noqa: B006
    """Prepare the corpus of a spec, or find it prepared; prints what is in it."""

    def job(terminal: Terminal) -> str:
        from pipeline.spec import load_spec

        spec = load_spec(conf, overrides)
        from pipeline.workflow import prepare_job

        prepared, watch = prepare_job(spec, terminal, address)
        manifest = prepared.manifest
        splits = {name: entry["rows"] for name, entry in manifest.splits.items()}
        return json.dumps(
            {
                "prepared": prepared.key,
                "folder": prepared.store.uri,
                "splits": splits,
                "report": manifest.report,
                "seconds": watch.with_total(),
            },
            ensure_ascii=False,
        )

    run_job(job, debug)
