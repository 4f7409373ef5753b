"""Trainings of the three families that are killed at random moments, and compared with ones that were not.

    python -m tests.benchmarks.soak [--kills 20] [--seed S] [--minutes M] [--workers 1] [--gpu] [CASE …]

Each run of `atelier train` is killed several times: its worker, the raylet of the node where that is, or its driver,
which is then called again. It must end with the undisturbed run's weights bit for bit and its history, step by step,
in one MLflow run, and leave nothing running. A line a run is printed, and a last one over all; the exit code is 1 when
there was a fault. Kills for which a run was too short are made up for in runs of the next seed, so that in the end
`--kills` were done. With `--minutes` rounds of so many go on until that time is over; a case that did not come through
begins the next round in a storage of its own, since in the old one it would go on where it broke. With `--gpu` every
worker has the machine's GPU, and several speak through NCCL.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.cases import CASES
from tests.chaos.ordeal import ChaosError
from tests.chaos.trial import Trial
from tests.integration.ray_nodes import RayNodes


def shared_out(count: int, among: int) -> list[int]:
    """`count` kills over so many runs, as equally as they go."""
    return [count // among + (number < count % among) for number in range(among)]


def soak(
    cases: list[str], kills: int, seed: int, minutes: float, workers: int, say: Callable[[str], None], gpus: int = 0
) -> dict[str, Any]:
    """Rounds over all cases until `kills` were done and the minutes are over, or there was a fault; the summary."""
    start, rounds, done, faults = time.monotonic(), 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        trials = [Trial(case, Path(folder), workers) for case in cases]
        while (done < kills and not faults) or time.monotonic() - start < minutes * 60:
            before = done
            with RayNodes(gpus_each=gpus) as nodes:  # each lost node has another in its place, at an address of its own
                # A run may end before its last kill: what is wanting comes in the next round.
                for number, count in enumerate(shared_out(kills - done if done < kills else kills, len(cases))):
                    if count == 0:
                        continue
                    trial = trials[number]
                    try:
                        told = trial.run(nodes, seed + rounds, count, say)
                    except ChaosError as error:
                        told = {"case": trial.case, "seed": seed + rounds, "kills": [], "faults": [str(error)]}
                        trials[number] = Trial(trial.case, Path(tempfile.mkdtemp(dir=folder)), workers)
                    done += len(told["kills"])
                    faults += len(told["faults"])
                    print(json.dumps(told), flush=True)
            rounds += 1
            if done == before and not faults:
                faults += 1
                print(json.dumps({"faults": ["no kill of this round came in time: runs are too short"]}), flush=True)
    minutes_taken = round((time.monotonic() - start) / 60, 1)
    return {"seed": seed, "rounds": rounds, "kills": done, "faults": faults, "minutes": minutes_taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("case", nargs="*", default=list(CASES))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="Of the kills; drawn and said when it is not given.")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `finally`: the nodes are ended
    say(f"seed {seed}")
    summary = soak(options.case, options.kills, seed, options.minutes, options.workers, say, int(options.gpu))
    print(json.dumps(summary), flush=True)
    sys.exit(1 if summary["faults"] else 0)


if __name__ == "__main__":
    main()
