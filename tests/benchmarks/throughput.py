"""Steps a second of the Ray path against hand-written plain PyTorch loops of the same models, in one run.

    python -m tests.benchmarks.throughput [--slices 12] [--slice-seconds 3] [CONF …]

The plain loops below are what an engineer would write without Atelier: the same network, batch size, optimiser
and threads, the data in memory as one tensor, no recording, no checkpoints, in a process that has no Ray. Both
are running at once and take turns: while one runs, every process of the other (the training worker and all of
Ray's own) is stopped, so that both see the same machine, within seconds. A line a family is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.prepare import prepare
from pipeline.progress import silent
from pipeline.ray_session import end_data_actors, ray_session
from pipeline.release.tracking import metric_history, open_tracking, start_or_continue_run
from pipeline.spec import RunSpec, load_spec
from pipeline.storage import Store, open_store
from pipeline.training.launch import train_with_ray
from pipeline.training.worker import told

Step = Callable[[int], None]
PLAINER = {
    "image_vae": ["model.family.prior=normal", "model.backbone={kind: mlp, hidden: [512, 512]}", "training.lr=1.5e-3"],
    "audio_gan": ["model.family.phase_shuffle=0"],
}
"""What the confs have since the plain loops were written that these do not."""
SETTLED_SECONDS = 8.0
"""Before, a thread of the worker still imports MLflow, and the plain process torch."""


def plain_vae(data: Tensor) -> Step:
    """A step of an MLP autoencoder 784-512-512-z32 with dynamic binarisation."""
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

    return step


def plain_rnn(data: Tensor, vocabulary: int) -> Step:
    """A step of an LSTM language model of 256 with carried state, 32 lanes of 100 characters."""
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

    return step


def plain_gan(data: Tensor) -> Step:
    """A step (three critic updates and one of the generator) of a small waveform WGAN-GP."""
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

    return step


def run_plain(conf: str, data: Tensor, vocabulary: int, threads: int, steps: Any) -> None:
    """Step for ever, in a process of its own; `steps` counts."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # as the workers do: what is compared is the path, not this setting
    step = {
        "image_vae": lambda: plain_vae(data),
        "text_rnn": lambda: plain_rnn(data, vocabulary),
        "audio_gan": lambda: plain_gan(data),
    }[conf]()
    while True:
        step(steps.value)
        steps.value += 1


class Turns(threading.Thread):
    """Lets the plain process and all of Ray's run by turns, from the first step of the training on."""

    def __init__(self, plain: psutil.Process, steps: Any, slices: int, slice_seconds: float) -> None:
        super().__init__(daemon=True)
        self.plain, self.steps, self.slices, self.slice_seconds = plain, steps, slices, slice_seconds
        self.began = threading.Event()
        self.rays: list[tuple[float, float]] = []
        """When Ray ran, in seconds of the epoch."""
        self.plain_steps, self.plain_seconds = 0, 0.0

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "train" and not note.startswith("waiting"):
            self.began.set()

    def run(self) -> None:
        self.began.wait()
        time.sleep(SETTLED_SECONDS)
        rays = [p for p in psutil.Process().children(recursive=True) if p.pid != self.plain.pid]
        for _ in range(self.slices):
            self._send(rays, signal.SIGSTOP)
            start, before = time.time(), self.steps.value
            self.plain.resume()
            time.sleep(self.slice_seconds)
            self.plain.suspend()
            self.plain_steps += self.steps.value - before
            self.plain_seconds += time.time() - start
            start = time.time()
            self._send(rays, signal.SIGCONT)
            time.sleep(self.slice_seconds)
            self.rays.append((start, time.time()))

    @staticmethod
    def _send(processes: list[psutil.Process], what: signal.Signals) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(what)

    def ran(self, start: float, end: float) -> float:
        """Seconds that Ray ran between two times of the epoch."""
        return sum(max(0.0, min(end, b) - max(start, a)) for a, b in self.rays)


def compare(conf: str, store: Store, slices: int, slice_seconds: float) -> dict[str, Any]:
    """Train `conf` with Ray Train and with the plain loop by turns; steps a second of both."""
    spec = load_spec(f"conf/{conf}.yaml", [f"storage={store.uri}", *PLAINER.get(conf, [])])
    prepared = prepare(spec, store, silent)
    end_data_actors()  # as a training job does
    threads = len(os.sched_getaffinity(0))
    total = 2 * slices * slice_seconds + SETTLED_SECONDS
    changed = spec.as_dict()
    changed["training"] |= {
        "steps": 10_000_000,
        "max_seconds": total,
        "threads_per_worker": threads,
        "schedule": "constant",
        "ema_decay": 0.0,
        "precision": "float32",
        "validate_every": 10_000_000,
        "checkpoint_every": 10_000_000,
    }
    spec = RunSpec.model_validate(changed)
    key = f"{spec.name}-throughput"
    tracking = open_tracking(spec, store)
    run_id = start_or_continue_run(tracking, spec.name, key, key)
    context = multiprocessing.get_context("spawn")
    steps = context.Value("q", 0, lock=False)
    data = prepared.load_split("train").x
    process = context.Process(target=run_plain, args=(conf, data, prepared.layout.vocabulary, threads, steps))
    process.start()
    try:
        while steps.value < 3:
            assert process.is_alive(), "the plain loop ended; its traceback is above"
            time.sleep(0.1)
        plain = psutil.Process(process.pid)
        plain.suspend()
        turns = Turns(plain, steps, slices, slice_seconds)
        turns.start()
        train_with_ray(spec, prepared, store, key, tracking.uri, run_id, turns.progress)
        turns.join()
        began = told(key)["first_step_at"]
    finally:
        process.kill()
        process.join()
    rows = [row for row in metric_history(tracking.uri, run_id) if "train/steps_per_second" in row]
    rows = [row for row in rows if turns.rays[0][0] <= began + row["train/seconds"] <= turns.rays[-1][1]]
    ran = turns.ran(began + rows[0]["train/seconds"], began + rows[-1]["train/seconds"])
    rate, alone = (rows[-1]["step"] - rows[0]["step"]) / ran, turns.plain_steps / turns.plain_seconds
    return {
        "conf": conf,
        "ray_steps_per_second": round(rate, 2),
        "plain_steps_per_second": round(alone, 2),
        "ratio": round(rate / alone, 3),
        "seconds_of_each": round(ran, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("conf", nargs="*", default=["image_vae", "text_rnn", "audio_gan"])
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--slice-seconds", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ray_session():
        store = open_store(folder)
        for conf in options.conf:
            print(json.dumps(compare(conf, store, options.slices, options.slice_seconds)), flush=True)


if __name__ == "__main__":
    main()
