"""Steps a second of the Ray path against hand-written plain PyTorch loops of the same models, in one run.

    python -m tests.benchmarks.throughput [--seconds 20] [--pairs 3]

The plain loops below are what an engineer would write without Atelier: the same network, batch size, optimiser
and threads, the data in memory as one tensor, no recording, no checkpoints. Plain and Ray take turns, so that a
machine that slows down slows both; the median of the pairs' ratios is printed, a line a family.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.prepare import prepare
from pipeline.data.shards import Prepared
from pipeline.progress import silent
from pipeline.ray_session import ray_session
from pipeline.release.tracking import metric_history, open_tracking, start_or_continue_run
from pipeline.spec import RunSpec, load_spec
from pipeline.storage import Store, open_store
from pipeline.training.launch import train_with_ray

WARM_UP_STEPS = 20
SETTLED_SECONDS = 6.0


def plain_vae(data: Tensor, seconds: float) -> float:
    """Steps a second of an MLP autoencoder 784-512-512-z32 with dynamic binarisation."""
    encoder = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64))
    decoder = nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 784))
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1.5e-3, fused=True)
    data = data.flatten(1)

    def step(number: int) -> None:
        grey = data[torch.randint(len(data), (128,))] * (1 / 255)
        x = (torch.rand_like(grey) < grey).float()
        mean, log_variance = encoder(x).chunk(2, 1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="none").sum(1)
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
        optimizer.zero_grad()
        (reconstruction + kl).mean().backward()
        optimizer.step()

    return _rate(step, seconds)


def plain_rnn(data: Tensor, vocabulary: int, seconds: float) -> float:
    """Steps a second of an LSTM language model of 256 with carried state, 32 lanes of 100 characters."""
    stream = data.flatten().long()
    embedding, recurrent = nn.Embedding(vocabulary, 64), nn.LSTM(64, 256, batch_first=True)
    head = nn.Linear(256, vocabulary)
    parameters = [*embedding.parameters(), *recurrent.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=4e-3, betas=(0.9, 0.99), weight_decay=0, fused=True)
    starts, within = torch.arange(32) * len(stream) // 32, torch.arange(101)
    state: list[Any] = [None]

    def step(number: int) -> None:
        x = stream[((starts + number * 100).unsqueeze(1) + within) % len(stream)]
        hidden, after = recurrent(embedding(x[:, :-1]), state[0])
        state[0] = tuple(part.detach() for part in after)
        loss = F.cross_entropy(head(hidden).flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return _rate(step, seconds)


def plain_gan(data: Tensor, seconds: float) -> float:
    """Steps a second (three critic updates and one of the generator) of a small waveform WGAN-GP."""
    widths = [1, 16, 32, 64, 128]
    down: list[nn.Module] = []
    up: list[nn.Module] = [nn.Linear(64, 128 * 32), nn.Unflatten(1, (128, 32))]
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        down += [nn.Conv1d(before, after, 15, stride=4, padding=7), nn.LeakyReLU(0.2)]
    for before, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
        up += [nn.LeakyReLU(0.2), nn.ConvTranspose1d(before, after, 16, stride=4, padding=6)]
    critic = nn.Sequential(*down, nn.Flatten(), nn.Linear(128 * 32, 1))
    generator = nn.Sequential(*up, nn.Tanh())
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=3e-4, betas=(0.5, 0.9), fused=True)
    generator_optimizer = torch.optim.Adam(generator.parameters(), lr=3e-4, betas=(0.5, 0.9), fused=True)

    def step(number: int) -> None:
        for parameter in critic.parameters():
            parameter.requires_grad_(True)
        for _ in range(3):
            real = data[torch.randint(len(data), (16,))] * (1 / 32768)
            with torch.no_grad():
                fake = generator(torch.randn(16, 64))
            real_score, fake_score = critic(torch.cat([real, fake])).chunk(2)
            share = torch.rand(16, 1, 1)
            between = (share * real + (1 - share) * fake).requires_grad_()
            (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
            critic_optimizer.zero_grad()
            (fake_score.mean() - real_score.mean() + 10 * penalty).backward()
            critic_optimizer.step()
        for parameter in critic.parameters():
            parameter.requires_grad_(False)
        generator_optimizer.zero_grad()
        (-critic(generator(torch.randn(16, 64))).mean()).backward()
        generator_optimizer.step()

    return _rate(step, seconds)


def _rate(step: Callable[[int], None], seconds: float) -> float:
    for number in range(WARM_UP_STEPS):
        step(number)
    number, start = WARM_UP_STEPS, time.monotonic()
    while time.monotonic() - start < seconds:
        step(number)
        number += 1
    return (number - WARM_UP_STEPS) / (time.monotonic() - start)


def ray_rate(spec: RunSpec, prepared: Prepared, store: Store, number: int, seconds: float) -> float:
    """Steps a second in the loop of one Ray Train worker that records in MLflow.

    Taken from the reports after `SETTLED_SECONDS`: before, a thread of the worker still imports MLflow.
    """
    changed = spec.as_dict()
    changed["training"] |= {
        "steps": 10_000_000,
        "max_seconds": seconds,
        "threads_per_worker": torch.get_num_threads(),
        "schedule": "constant",
        "ema_decay": 0.0,
        "validate_every": 10_000_000,
        "checkpoint_every": 10_000_000,
    }
    spec = RunSpec.model_validate(changed)
    key = f"{spec.name}-throughput-{number}"
    tracking = open_tracking(spec, store)
    run_id = start_or_continue_run(tracking, spec, key, key)
    train_with_ray(spec, prepared, store, key, tracking.uri, run_id, silent)
    rows = [row for row in metric_history(tracking.uri, run_id) if row["train/seconds"] >= SETTLED_SECONDS]
    return (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["train/seconds"] - rows[0]["train/seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder, ray_session():
        for conf in ("image_vae", "text_rnn", "audio_gan"):
            spec = load_spec(f"conf/{conf}.yaml", [f"storage={folder}"])
            store = open_store(spec.storage)
            prepared = prepare(spec, store, silent)
            data = prepared.load_split("train").x
            plain: dict[str, Callable[[], float]] = {
                "image_vae": lambda data=data: plain_vae(data, options.seconds),
                "text_rnn": lambda data=data, layout=prepared.layout: plain_rnn(
                    data, layout.vocabulary, options.seconds
                ),
                "audio_gan": lambda data=data: plain_gan(data, options.seconds),
            }
            pairs = []
            for number in range(options.pairs):
                alone = plain[conf]()
                pairs.append((ray_rate(spec, prepared, store, number, options.seconds), alone))
            ratios = [ray / alone for ray, alone in pairs]
            row = {
                "conf": conf,
                "ray_steps_per_second": [round(ray, 2) for ray, _ in pairs],
                "plain_steps_per_second": [round(alone, 2) for _, alone in pairs],
                "median_ratio": round(statistics.median(ratios), 3),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
