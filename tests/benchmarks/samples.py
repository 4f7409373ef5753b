"""How long the scores of 10,000 generated pictures take: a quickly trained VAE of MNIST, evaluated on 2 workers.

    python -m tests.benchmarks.samples /data/image/mnist.npz

Prints the seconds of the whole evaluation, of its parts on the workers and on the driver, and the scores. Against
10,000 generated pictures stand 20,000 held-out ones (two halves of 10,000) and up to 50,000 training examples. Run by
hand on a quiet machine with 2 cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from pipeline.data.prepare import prepare
from pipeline.evaluation.evaluate import collect_samples, evaluate
from pipeline.evaluation.sample_scores import estimates
from pipeline.generation.sampling import save_bundle
from pipeline.progress import silent
from pipeline.ray_session import ray_session
from pipeline.spec import make_spec
from pipeline.storage import open_store
from pipeline.training.in_process import train_in_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("npz", type=Path, help="MNIST as an npz file with x_train, y_train, x_test, y_test")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300, help="steps of the VAE's training, which is not timed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ray_session():
        run(arguments, folder)


def run(arguments: argparse.Namespace, folder: str) -> None:
    spec = make_spec(
        {
            "name": "samples",
            "storage": folder,
            "data": {
                "source": {"kind": "npz", "path": str(arguments.npz.resolve())},
                "codec": {"kind": "image", "size": [28, 28], "likelihood": "bernoulli"},
                "split": {"kind": "hash", "validation": 0.01, "test": 0.3},
            },
            "model": {
                "family": {"kind": "vae", "latent_size": 32, "binarise": "dynamic"},
                "backbone": {"kind": "mlp", "hidden": [512, 512]},
            },
            "training": {"steps": arguments.steps, "num_workers": 0, "validate_every": arguments.steps},
            "evaluation": {"samples": arguments.samples, "num_workers": arguments.workers, "nll_samples": 1},
        }
    )
    store = open_store(folder)
    prepared = prepare(spec, store)
    trained = train_in_process(spec, prepared, store, "benchmark", None, None, silent)
    bundle = save_bundle(Path(folder, "bundle"), spec, prepared.manifest.as_dict(), trained.weights)

    start = time.perf_counter()
    scores = evaluate(spec, prepared, bundle)
    whole = time.perf_counter() - start
    start = time.perf_counter()
    samples = collect_samples(spec, prepared, bundle)
    collecting = time.perf_counter() - start
    assert samples is not None
    start = time.perf_counter()
    estimates(samples)
    scoring = time.perf_counter() - start
    for key, score in scores.items():
        low, high = score.interval or (float("nan"), float("nan"))
        print(f"{key:34} {score.value:12.5f}  ({low:.5f} to {high:.5f})  {score.caution or ''}")
    print(f"{len(samples.generated):,} generated, {len(samples.held_out):,} held out, {len(samples.train):,} training")
    print(f"whole evaluation, likelihood and the extractor's training included: {whole:.1f} s")
    print(f"again, with the extractor at hand: drawing and features {collecting:.1f} s, scoring {scoring:.1f} s")


if __name__ == "__main__":
    main()
