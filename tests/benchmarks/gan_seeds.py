"""Short runs of a GAN from ten seeds: each must end without a loss that is not finite.

    python -m tests.benchmarks.gan_seeds CONF [--set KEY=VALUE ...] [--seeds 10] [--steps 60]

Prints one line of JSON a seed and one at the end. Trains in this process, on a set that is prepared if need be.
"""

from __future__ import annotations

import argparse
import json
import math

from pipeline.data.prepare import prepare
from pipeline.errors import NonFiniteLossError
from pipeline.progress import silent
from pipeline.ray_session import ray_session
from pipeline.spec import load_spec
from pipeline.storage import open_store
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("conf")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    with ray_session():
        spec = load_spec(options.conf, options.overrides)
        prepared = prepare(spec, open_store(spec.storage), silent)
    finite = 0
    for seed in range(options.seeds):
        limits = [f"seed={seed}", f"training.steps={options.steps}", "training.max_seconds=null"]
        spec = load_spec(options.conf, [*options.overrides, *limits])
        hooks = LocalHooks(spec)
        try:
            Session(spec, prepared).run(hooks)
        except NonFiniteLossError as error:
            print(json.dumps({"seed": seed, "error": str(error)}), flush=True)
            continue
        losses = {name: round(value, 4) for name, value in hooks.metrics.items() if "loss" in name}
        finite += all(math.isfinite(value) for value in hooks.metrics.values())
        print(json.dumps({"seed": seed, **losses}), flush=True)
    print(json.dumps({"finite": finite, "of": options.seeds, "steps": options.steps}))


if __name__ == "__main__":
    main()
