"""Training loops by hand: what an engineer writes for three confs without Atelier, in one process or under torchrun.

    torchrun --nproc-per-node 2 -m tests.benchmarks.plain_loops CONF DATA STEPS

The same networks, global batch, optimisers and threads as the confs of the same names (with `PLAINER`), the data in
memory as one tensor, no recording and no checkpoints. Several processes go by DistributedDataParallel: each takes its
share of the batch, or with `--weak` a whole one. DATA is a file of `torch.save`; STEPS, of eight bytes, counts the
steps for whoever looks on.
"""

from __future__ import annotations

import argparse
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

Step = Callable[[int], None]
Wrap = Callable[[nn.Module], nn.Module]
Place = tuple[int, int]
"""Rank and number of ranks."""
PLAINER = {
    "image_vae": ["model.family.prior=normal", "model.backbone={kind: mlp, hidden: [512, 512]}", "training.lr=1.5e-3"],
    "audio_gan": ["model.family.phase_shuffle=0"],
}
"""What the confs have since the plain loops were written that these do not."""
BATCHES = {"image_vae": 128, "text_rnn": 32, "audio_gan": 16}
"""Examples in a step: the confs' own."""


class VaeLoss(nn.Module):
    """The negative bound of an MLP autoencoder 784-512-512-z32 of binary pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64))
        self.decoder = nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 784))

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        reconstruction = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1)
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
        return (reconstruction + kl).mean()


def plain_vae(data: Tensor, vocabulary: int, wrap: Wrap, batch: int, place: Place) -> Step:
    """A step of the autoencoder with dynamic binarisation."""
    loss_of = wrap(VaeLoss())
    optimizer = torch.optim.Adam(loss_of.parameters(), lr=1.5e-3, fused=True)
    data = data.flatten(1)

    def step(number: int) -> None:
        grey = data[torch.randint(len(data), (batch,))] * (1 / 255)
        x = (torch.rand_like(grey) < grey).float()
        optimizer.zero_grad()
        loss_of(x).backward()
        optimizer.step()

    return step


class LanguageModel(nn.Module):
    """An LSTM of 256 over characters, its state carried."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.recurrent = nn.Embedding(vocabulary, 64), nn.LSTM(64, 256, batch_first=True)
        self.head = nn.Linear(256, vocabulary)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, after = self.recurrent(self.embedding(x[:, :-1]), state)
        loss = F.cross_entropy(self.head(hidden).flatten(0, 1), x[:, 1:].flatten())
        return loss, tuple(part.detach() for part in after)


def plain_rnn(data: Tensor, vocabulary: int, wrap: Wrap, batch: int, place: Place) -> Step:
    """A step of the language model on `batch` lanes of 100 characters."""
    model = wrap(LanguageModel(vocabulary))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=4e-3, betas=(0.9, 0.99), weight_decay=0, fused=True)
    stream = data.flatten().long()
    rank, ranks = place
    lanes = torch.arange(batch) * ranks + rank
    starts, within = lanes * len(stream) // (batch * ranks), torch.arange(101)
    state: list[Any] = [None]

    def step(number: int) -> None:
        x = stream[((starts + number * 100).unsqueeze(1) + within) % len(stream)]
        loss, state[0] = model(x, state[0])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


class CriticLoss(nn.Module):
    """The Wasserstein loss of a critic of waveforms, with the gradient penalty."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        down: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            down += [nn.Conv1d(before, after, 15, stride=4, padding=7), nn.LeakyReLU(0.2)]
        self.critic = nn.Sequential(*down, nn.Flatten(), nn.Linear(128 * 32, 1))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        real_score, fake_score = self.critic(torch.cat([real, fake])).chunk(2)
        share = torch.rand(len(real), 1, 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        return fake_score.mean() - real_score.mean() + 10 * penalty


class GeneratorLoss(nn.Module):
    """What the critic, which is not trained here, says of generated waveforms."""

    def __init__(self, widths: list[int], critic: nn.Module) -> None:
        super().__init__()
        up: list[nn.Module] = [nn.Linear(64, 128 * 32), nn.Unflatten(1, (128, 32))]
        for before, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
            up += [nn.LeakyReLU(0.2), nn.ConvTranspose1d(before, after, 16, stride=4, padding=6)]
        self.generator, self.critic = nn.Sequential(*up, nn.Tanh()), critic

    def forward(self, z: Tensor) -> Tensor:
        return -self.critic(self.generator(z)).mean()


def require(parameters: Iterable[nn.Parameter], wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(wanted)


def plain_gan(data: Tensor, vocabulary: int, wrap: Wrap, batch: int, place: Place) -> Step:
    """A step (three critic updates and one of the generator) of a small waveform WGAN-GP."""
    widths = [1, 16, 32, 64, 128]
    critic_loss = CriticLoss(widths)
    critic, generator_loss = critic_loss.critic, GeneratorLoss(widths, critic_loss.critic)
    generator = generator_loss.generator
    judged = wrap(critic_loss)
    require(critic.parameters(), False)
    fooled = wrap(generator_loss)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=3e-4, betas=(0.5, 0.9), fused=True)
    generator_optimizer = torch.optim.Adam(generator.parameters(), lr=3e-4, betas=(0.5, 0.9), fused=True)

    def step(number: int) -> None:
        require(critic.parameters(), True)
        for _ in range(3):
            real = data[torch.randint(len(data), (batch,))] * (1 / 32768)
            with torch.no_grad():
                fake = generator(torch.randn(batch, 64))
            critic_optimizer.zero_grad()
            judged(real, fake).backward()
            critic_optimizer.step()
        require(critic.parameters(), False)
        generator_optimizer.zero_grad()
        fooled(torch.randn(batch, 64)).backward()
        generator_optimizer.step()

    return step


LOOPS: dict[str, Callable[[Tensor, int, Wrap, int, Place], Step]] = {
    "image_vae": plain_vae,
    "text_rnn": plain_rnn,
    "audio_gan": plain_gan,
}


class Counter:
    """A number in a file of eight bytes, which one process adds to and others read."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self.bytes = mmap.mmap(file.fileno(), 8)

    @property
    def value(self) -> int:
        number: int = struct.unpack("q", self.bytes[:8])[0]
        return number

    @value.setter
    def value(self, number: int) -> None:
        self.bytes[:8] = struct.pack("q", number)


def as_it_is(module: nn.Module) -> nn.Module:
    return module


def main() -> None:
    """Step for ever."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("conf", choices=list(LOOPS))
    parser.add_argument("data", type=Path)
    parser.add_argument("steps", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weak", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # as the workers do: what is compared is the path, not this setting
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    wrap: Wrap = as_it_is
    if ranks > 1:
        dist.init_process_group("gloo")
        wrap = DistributedDataParallel
    data, vocabulary = torch.load(options.data)
    batch = BATCHES[options.conf] // (1 if options.weak else ranks)
    step = LOOPS[options.conf](data, vocabulary, wrap, batch, (rank, ranks))
    counter, number = Counter(options.steps), 0
    while True:
        step(number)
        number += 1
        if rank == 0:
            counter.value = number


if __name__ == "__main__":
    main()
