"""Planted canaries: random secrets put into a corpus, and how far a model trained on it gives them away.

Plain PyTorch, in whichever process holds the model. Plant before `prepare`, train, then measure: the exposure compares
the model's likelihood of the secret that was planted with that of secrets that were not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from pipeline.data.codec import Codec
from pipeline.data.layout import Layout
from pipeline.errors import SpecError
from pipeline.evaluation.metric import Definition, Interval
from pipeline.models.base import Batch, GenerativeModel, Noise, make_generator

DEFINITIONS_OF_CANARIES: dict[str, Definition] = {
    "canary_exposure": Definition(
        "Exposure of a planted canary",
        "bits",
        "lower",
        "How much more easily the model's likelihood lets a planted secret be guessed (Carlini et al. 2019): about 1 "
        "for a secret it has not memorised, the logarithm of the number of possible secrets for one that it gives away "
        "at the first guess.",
    ),
}


@dataclass(frozen=True)
class CanaryFormat:
    """A text with one `{}` for a secret of `length` random characters of `alphabet`."""

    template: str = "the access code is {}."
    alphabet: str = "0123456789"
    length: int = 6

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1 or self.length < 1 or len(set(self.alphabet)) < 2:
            raise SpecError(
                f"canary {self.template!r}, {self.length} of {self.alphabet!r}: the template needs {{}} once, the "
                "secret a length of at least 1 and two different characters"
            )

    @property
    def num_secrets(self) -> int:
        """|R|, the number of possible secrets."""
        return len(self.alphabet) ** self.length

    def text(self, secret: str) -> str:
        return self.template.replace("{}", secret)

    def secret(self, number: int) -> str:
        """The secret with a number from 0 to `num_secrets` - 1."""
        digits: list[str] = []
        for _ in range(self.length):
            number, digit = divmod(number, len(self.alphabet))
            digits.append(self.alphabet[digit])
        return "".join(reversed(digits))

    def random_secrets(self, count: int, generator: torch.Generator) -> list[str]:
        """`count` secrets, each drawn evenly from all."""
        drawn = torch.randint(len(self.alphabet), (count, self.length), generator=generator).tolist()
        return ["".join(self.alphabet[digit] for digit in row) for row in drawn]


def plant(texts: Sequence[str], canary: str, times: int, seed: int) -> list[str]:
    """`texts` with `times` copies of `canary` at random places: as records of their own or, in a corpus of one text, as
    lines of it."""
    generator = make_generator(seed, "canary-places")
    parts = list(texts) if len(texts) != 1 else texts[0].splitlines(keepends=True)
    new = canary if len(texts) != 1 else canary + "\n"
    for place in sorted(torch.randint(len(parts) + 1, (times,), generator=generator).tolist(), reverse=True):
        parts.insert(place, new)
    return parts if len(texts) != 1 else ["".join(parts)]


def nats_of(model: GenerativeModel, codec: Codec, layout: Layout, texts: Sequence[str], seed: int = 0) -> np.ndarray:
    """What each text costs the model, -log p(text) in nats, float64 `[N]`, by its own `evaluate`.

    In a stream a text follows the end of a document where there is such a token; without one its first token, the same
    for all secrets of a format, is given. Of an autoencoder it is the importance-weighted bound with
    `importance_samples` draws, the same noise for every text. Raises: SpecError for a model without a likelihood.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    costs: list[float] = []
    for text in texts:
        tokens = torch.from_numpy(codec.encode(text).astype(np.int64))
        if layout.continuous and layout.end_token is not None:
            tokens = torch.cat([torch.tensor([layout.end_token]), tokens])
        x, unlabelled, row = (part.to(device) for part in (tokens.unsqueeze(0), torch.tensor([-1]), torch.tensor([0])))
        batch = Batch(x, unlabelled, row)
        sums, _ = model.evaluate(batch, Noise(make_generator(seed, "canary", device=device)))
        found = sums.get("nats", sums.get("nll"))
        if found is None:
            raise SpecError(f"a {type(model).__name__} has no likelihood, so no exposure of canaries can be measured")
        costs.append(float(found))
    model.train(was_training)
    return np.array(costs)


@dataclass(frozen=True)
class Exposure:
    """The exposure of one secret, in bits; at most `most_bits`, log2 of the number of possible secrets.

    `by_rank` is exact and there only where all secrets were tried, `by_sampling` an estimate from below once the secret
    beats all that were sampled; `interval` is its 95% interval, exact binomial (Clopper and Pearson 1934).
    `by_extrapolation` fits a skew normal distribution to the sampled secrets' nats, `fit_p_value` is how well it fits
    (Kolmogorov-Smirnov; below 0.05 do not trust it).
    """

    most_bits: float
    by_rank: float | None
    by_sampling: float
    interval: Interval
    by_extrapolation: float
    fit_p_value: float


def measure_exposure(
    model: GenerativeModel,
    codec: Codec,
    layout: Layout,
    canary: CanaryFormat,
    secret: str,
    samples: int = 1000,
    seed: int = 0,
) -> Exposure:
    """The exposure of the planted `secret` among `samples` others, or among all where there are no more than that."""
    own = float(nats_of(model, codec, layout, [canary.text(secret)], seed)[0])
    every = canary.num_secrets <= samples
    secrets = (
        [canary.secret(number) for number in range(canary.num_secrets)]
        if every
        else canary.random_secrets(samples, make_generator(seed, "canary-secrets"))
    )
    others = nats_of(model, codec, layout, [canary.text(other) for other in secrets if other != secret], seed)
    sampled, interval = exposure_by_sampling(own, others)
    extrapolated, fit = exposure_by_extrapolation(own, others)
    most = math.log2(canary.num_secrets)
    return Exposure(
        most_bits=most,
        by_rank=exposure_by_rank(own, others) if every else None,
        by_sampling=sampled,
        interval=interval,
        by_extrapolation=min(most, extrapolated),
        fit_p_value=fit,
    )


def exposure_by_rank(nats: float, others: np.ndarray) -> float:
    """log2 |R| - log2 rank, among all other secrets' nats `[|R| - 1]`; a tie counts against the secret's rank.

    Source: Carlini et al. (2019), definition 5.
    """
    return math.log2(len(others) + 1) - math.log2(1 + int((others <= nats).sum()))


def exposure_by_sampling(nats: float, sampled: np.ndarray) -> tuple[float, Interval]:
    """-log2 of the share of sampled secrets `[n]` that cost no more than this one, counting itself so that it stays
    finite, and its 95% interval. Source: Carlini et al. (2019), section 4.3, approximation by sampling."""
    n, below = len(sampled), int((sampled <= nats).sum())
    low = 0.0 if below == 0 else float(stats.beta.ppf(0.025, below, n - below + 1))
    high = 1.0 if below == n else float(stats.beta.ppf(0.975, below + 1, n - below))
    return -math.log2((below + 1) / (n + 1)), (-math.log2(high), math.inf if low == 0 else -math.log2(low))


def exposure_by_extrapolation(nats: float, sampled: np.ndarray) -> tuple[float, float]:
    """-log2 of the chance of a secret that costs no more, under a skew normal distribution fitted to sampled secrets'
    nats `[n]`, and the p-value of the fit. Source: Carlini et al. (2019), section 4.3, approximation by modelling."""
    shape, location, scale = stats.skewnorm.fit(sampled)
    fit = stats.kstest(sampled, stats.skewnorm(shape, location, scale).cdf)
    log_chance = float(stats.skewnorm.logcdf(nats, shape, location, scale))
    return (-log_chance / math.log(2) if math.isfinite(log_chance) else math.inf), float(fit.pvalue)
