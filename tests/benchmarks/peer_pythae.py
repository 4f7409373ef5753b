"""The picture VAE against Pythae's `VAE` on MNIST: the same network size, the same wall-clock, the same score.

    python -m venv --system-site-packages /tmp/peer    # made with the project's own Python, so that torch is the same
    /tmp/peer/bin/pip install --no-deps pythae imageio cloudpickle
    /tmp/peer/bin/python -m tests.benchmarks.peer_pythae --data ../shared/data --seconds 300

Pythae (0.1.2) is no dependency of the project: it lives in an environment of the benchmark's own. Its model is given
its own trainer with Adam at 1e-3, the network 784-512-512-40 and back with ReLU, and pixels that are drawn anew each
time they are seen. Ours is `conf/benchmarks/mnist_vae.yaml` with layers so narrow that it has no more parameters, prior
included. Both are scored by this project's evaluation: the importance-weighted bound on the same binarised test digits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.prepared import Prepared
from pipeline.evaluation.likelihood import evaluate_split
from pipeline.models.vae_signals import SignalVae
from pipeline.spec import MlpBackboneSpec, RunSpec, VaeSpec
from tests.benchmarks.rows import options, train

HIDDEN, LATENT = 512, 40
OUR_HIDDEN = 472
"""With layer norms and the learned prior, as many parameters as Pythae's network has with 512."""
AT_LEAST_NATS = 1.0


class _OutOfTimeError(Exception):
    """The peer's training has had its seconds."""


def trained_pythae(x: Tensor, seconds: float, batch_size: int) -> tuple[Any, int]:
    """Pythae's VAE after `seconds` of its own trainer on grey levels `[N, 1, 28, 28]` uint8; and its steps."""
    from pythae.data.datasets import DatasetOutput
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Digits(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, row: int) -> Any:
            grey = x[row] / 255
            return DatasetOutput(data=(torch.rand_like(grey) < grey).float())

    class Reader(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.body = nn.Sequential(
                nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()
            )
            self.mean, self.log_variance = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)

        def forward(self, signal: Tensor) -> Any:
            hidden = self.body(signal)
            return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_variance(hidden))

    class Writer(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.body = nn.Sequential(
                nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784)
            )

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.body(z).sigmoid().view(-1, 1, 28, 28))

    class Deadline(TrainingCallback):
        steps, end = 0, time.monotonic() + seconds

        def on_train_step_end(self, training_config: Any, **_: Any) -> None:
            self.steps += 1
            if time.monotonic() > self.end:
                raise _OutOfTimeError

    logging.getLogger("pythae").setLevel(logging.WARNING)
    torch.manual_seed(0)
    settings = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    model = VAE(settings, encoder=Reader(), decoder=Writer())
    with tempfile.TemporaryDirectory() as folder:
        trainer = BaseTrainer(
            model=model,
            train_dataset=Digits(),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                num_epochs=10_000,
                learning_rate=1e-3,
                per_device_train_batch_size=batch_size,
                no_cuda=True,
            ),
            callbacks=[deadline := Deadline()],
        )
        deadline.end = time.monotonic() + seconds
        with contextlib.suppress(_OutOfTimeError):
            trainer.train()
    return trainer.model, deadline.steps


class _Reads(nn.Module):
    """Pythae's encoder as this project's: mean and log-variance side by side, `[B, 2 Z]`."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        told = self.encoder(x)
        return torch.cat([told.embedding, told.log_covariance], dim=1)


def nats_of_pythae(model: Any, spec: RunSpec, prepared: Prepared) -> float:
    """The importance-weighted bound of Pythae's model, by this project's evaluation."""
    family = VaeSpec(kind="vae", latent_size=LATENT, binarise="dynamic")
    ours = SignalVae(prepared.layout, family, MlpBackboneSpec(kind="mlp", hidden=(1,)))
    ours.encoder = _Reads(model.encoder)  # type: ignore[assignment]  # of an encoder it has what `SignalVae` asks of one
    ours.decoder = nn.Sequential(model.decoder.body, nn.Unflatten(1, (1, 28, 28)))
    ours.importance_samples = spec.evaluation.nll_samples
    sums = evaluate_split(ours.eval(), prepared.load_split("test"), prepared.layout, spec, spec.seed)
    return ours.summarise(sums)["nll_nats"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="wall-clock of either training")
    told = parser.parse_args()
    row = train(
        told,
        "mnist_vae",
        "image/mnist.npz",
        f"training.max_seconds={told.seconds}",
        f"model.backbone.hidden=[{OUR_HIDDEN},{OUR_HIDDEN}]",
        "evaluation.nll_samples=200",
        "evaluation.max_examples=2000",
    )
    spec, prepared = row.spec, row.prepared
    ours = row.bundle.model
    nats = ours.summarise(row.test_sums())["nll_nats"]
    peer, peer_steps = trained_pythae(prepared.load_split("train").x, told.seconds, spec.training.batch_size)
    peer_nats = nats_of_pythae(peer, spec, prepared)
    print(
        json.dumps(
            {
                "peer": "pythae VAE",
                "corpus": "MNIST, dynamic binarisation",
                "target": f"at least {AT_LEAST_NATS} nats lower",
                "met": peer_nats - nats >= AT_LEAST_NATS,
                "nats": round(nats, 3),
                "peer_nats": round(peer_nats, 3),
                "parameters": ours.num_parameters(),
                "peer_parameters": sum(p.numel() for p in peer.parameters()),
                "seconds": round(row.seconds),
                "steps": row.steps,
                "peer_steps": peer_steps,
                "draws": spec.evaluation.nll_samples,
                "examples": spec.evaluation.max_examples,
                "threads": torch.get_num_threads(),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
