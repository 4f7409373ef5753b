"""Losses and scores against closed forms: exact KL, exact evidence, a brute-force sum."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from pipeline.data.layout import Layout
from pipeline.models import build_model
from pipeline.models.backbones import SignalEncoder, make_encoder
from pipeline.models.base import Batch, Noise, SamplingOptions, StepContext, make_generator
from pipeline.models.decoding import draw
from pipeline.models.likelihoods import WIDTH_PACE, Gaussian
from pipeline.models.posterior import kl_to_standard_normal
from pipeline.models.rnn import RecurrentLanguageModel
from pipeline.models.vae_signals import SignalVae
from pipeline.spec import MlpBackboneSpec, RecurrentBackboneSpec, RnnSpec, VaeSpec
from tests.conftest import cell_spec

SIGNAL = Layout("audio", "signal", (1, 3), "float32", "gaussian", low=-1.0, high=1.0)
TOKENS = Layout("text", "tokens", (3,), "uint8", "categorical", vocabulary=3)


def _batch(x: torch.Tensor) -> Batch:
    return Batch(x, torch.full((len(x),), -1), torch.arange(len(x)))


def test_kl_is_zero_at_the_prior_and_exact_elsewhere() -> None:
    assert kl_to_standard_normal(torch.zeros(3), torch.zeros(3)).abs().max() == 0
    mean, log_variance = torch.tensor([0.7]), torch.tensor([-0.4])
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


@pytest.fixture(params=["normal", "flow"])
def linear_gaussian(request: pytest.FixtureRequest) -> tuple[SignalVae, torch.Tensor, torch.Tensor]:
    """x = W z + noise with an encoder that is not the exact posterior: the evidence is N(0, W W' + s² I). A learned
    prior begins as the standard normal, and must give the same."""
    torch.manual_seed(0)
    family = VaeSpec(kind="vae", latent_size=2, likelihood="gaussian", prior=request.param)
    model = SignalVae(SIGNAL, family, MlpBackboneSpec(kind="mlp"))
    weight, deviation = torch.randn(3, 2), 0.5
    decoder = nn.Linear(2, 3, bias=False)
    decoder.weight = nn.Parameter(weight)
    model.decoder = nn.Sequential(decoder, nn.Unflatten(1, (1, 3)))
    assert isinstance(model.likelihood, Gaussian)
    model.likelihood.paced_log_width = nn.Parameter(torch.tensor(math.log(deviation) / WIDTH_PACE))
    precision = torch.eye(2) + weight.T @ weight / deviation**2
    encoder = nn.Linear(3, 4)
    encoder.weight = nn.Parameter(
        torch.cat([torch.linalg.solve(precision, weight.T) / deviation**2, torch.zeros(2, 3)])
    )
    encoder.bias = nn.Parameter(torch.cat([torch.zeros(2), torch.linalg.inv(precision).diagonal().log()]))
    model.encoder = SignalEncoder(nn.Flatten(), 3, 4, 0)
    model.encoder.head = encoder
    x = torch.randn(50, 2) @ weight.T + deviation * torch.randn(50, 3)
    covariance = weight @ weight.T + deviation**2 * torch.eye(3)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    return model, x.unsqueeze(1), evidence


def test_importance_weighted_likelihood_reaches_the_known_evidence(
    linear_gaussian: tuple[SignalVae, torch.Tensor, torch.Tensor],
) -> None:
    model, x, evidence = linear_gaussian
    model.importance_samples = 5000
    sums, _ = model.evaluate(_batch(x), Noise(make_generator(0, "test")))
    scores = model.summarise(sums)
    assert scores["nll_nats"] == pytest.approx(-float(evidence.mean()), abs=0.01)
    assert scores["nll_nats"] < -scores["elbo_nats"]


def test_bound_tightens_with_samples(linear_gaussian: tuple[SignalVae, torch.Tensor, torch.Tensor]) -> None:
    model, x, _ = linear_gaussian
    values = []
    for model.importance_samples in (1, 10, 1000):
        sums, _ = model.evaluate(_batch(x), Noise(make_generator(0, "test")))
        values.append(model.summarise(sums)["nll_nats"])
    assert values[0] > values[1] > values[2]


def test_elbo_of_the_training_step_is_reconstruction_minus_kl() -> None:
    model = build_model(
        cell_spec("vae", "image"), Layout("image", "signal", (1, 12, 12), "uint8", "bernoulli", scale=1 / 255)
    )
    x = torch.rand(4, 1, 12, 12)
    means = model(_batch(x), "model", StepContext(Noise(make_generator(0, "n")), 4)).means
    mean, log_variance = model.encode(x)
    z = mean + (0.5 * log_variance).exp() * Noise(make_generator(0, "n")).normal(*mean.shape)
    p = model.expectation(z)
    likelihood = (x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
    elbo = (likelihood - kl_to_standard_normal(mean, log_variance).sum(1)).mean()
    torch.testing.assert_close(means["elbo_nats"], elbo.detach(), rtol=1e-5, atol=1e-4)


def test_kl_warmup_and_beta_weigh_the_kl() -> None:
    family = VaeSpec(kind="vae", latent_size=2, beta=4.0, kl_warmup=0.5)
    model = SignalVae(SIGNAL, family, MlpBackboneSpec(kind="mlp", hidden=(8,)))
    x = torch.randn(4, 1, 3)

    def step(progress: float) -> tuple[float, float]:
        output = model(_batch(x), "model", StepContext(Noise(make_generator(0, "n")), 4, progress))
        return float(output.loss.detach()), float(output.means["kl_nats"])

    start, kl = step(0.0)
    assert step(0.25)[0] == pytest.approx(start + 2.0 * kl, rel=1e-5)
    assert step(0.5)[0] == pytest.approx(start + 4.0 * kl, rel=1e-5)
    assert step(1.0)[0] == pytest.approx(start + 4.0 * kl, rel=1e-5)


def test_free_bits_charge_at_least_their_share_per_unit() -> None:
    family = VaeSpec(kind="vae", latent_size=2, free_bits_nats=3.0)
    model = SignalVae(SIGNAL, family, MlpBackboneSpec(kind="mlp", hidden=(8,)))
    x = torch.randn(4, 1, 3)
    free = float(model(_batch(x), "model", StepContext(Noise(make_generator(0, "n")), 4)).loss.detach())
    model.family = family.model_copy(update={"free_bits_nats": 0.0})
    output = model(_batch(x), "model", StepContext(Noise(make_generator(0, "n")), 4))
    assert free == pytest.approx(float(output.loss.detach()) - float(output.means["kl_nats"]) + 2 * 3.0, rel=1e-4)


def test_dynamic_binarisation_has_the_grey_level_as_its_mean() -> None:
    family = VaeSpec(kind="vae", latent_size=2, binarise="dynamic")
    model = SignalVae(SIGNAL, family, MlpBackboneSpec(kind="mlp", hidden=(8,)))
    grey = torch.tensor([0.0, 0.3, 1.0]).expand(20_000, 1, 3)
    drawn = model.observe(grey, Noise(make_generator(0, "n")))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0)[0], torch.tensor([0.0, 0.3, 1.0]), atol=0.015, rtol=0)


def test_language_model_sums_to_one_over_all_texts() -> None:
    backbone = RecurrentBackboneSpec(kind="recurrent", hidden_size=8, embedding_size=4, cell="lstm", layers=2)
    torch.manual_seed(0)
    model = RecurrentLanguageModel(TOKENS, RnnSpec(kind="rnn"), backbone).eval()
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    total = 0.0
    for text in every:
        sums, _ = model.evaluate(_batch(text.unsqueeze(0)), Noise(make_generator(0, "n")))
        total += math.exp(-float(sums["nats"]))
    assert total == pytest.approx(1.0, abs=1e-5)


def test_perplexity_of_samples_is_the_brute_force_entropy() -> None:
    backbone = RecurrentBackboneSpec(kind="recurrent", hidden_size=8, embedding_size=4)
    torch.manual_seed(1)
    model = RecurrentLanguageModel(TOKENS, RnnSpec(kind="rnn"), backbone).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)  # far from an even guess, whose perplexity is 3
    nats = torch.tensor(
        [
            float(model.evaluate(_batch(torch.tensor([text])), Noise(make_generator(0, "n")))[0]["nats"])
            for text in itertools.product(range(3), repeat=3)
        ]
    )
    entropy = float(((-nats).exp() * nats).sum())  # over all 27 texts
    samples = model.sample(20_000, make_generator(0, "draw"), SamplingOptions())
    sums, _ = model.evaluate(_batch(samples), Noise(make_generator(0, "n")))
    assert model.summarise(sums)["perplexity"] == pytest.approx(math.exp(entropy / 3), rel=0.01)
    assert math.exp(entropy / 3) < 2.5


def test_carried_state_reads_windows_as_one_text() -> None:
    layout = Layout("text", "tokens", (4,), "uint8", "categorical", vocabulary=5, continuous=True)
    backbone = RecurrentBackboneSpec(kind="recurrent", hidden_size=8, embedding_size=4)
    model = RecurrentLanguageModel(layout, RnnSpec(kind="rnn"), backbone).eval()
    text = torch.randint(5, (2, 9), generator=torch.Generator().manual_seed(0))
    noise = Noise(make_generator(0, "n"))
    whole, _ = model.evaluate(_batch(text), noise)
    first, carry = model.evaluate(_batch(text[:, :5]), noise)
    second, _ = model.evaluate(_batch(text[:, 4:]), noise, carry)
    assert float(first["nats"] + second["nats"]) == pytest.approx(float(whole["nats"]), rel=1e-6)


def test_top_k_and_nucleus_keep_only_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    generator = make_generator(0, "draw")
    assert set(draw(logits, generator, SamplingOptions(top_k=2)).tolist()) == {0, 1}
    assert set(draw(logits, generator, SamplingOptions(top_p=0.6)).tolist()) == {0, 1}
    assert set(draw(logits, generator, SamplingOptions(top_p=0.4)).tolist()) == {0}
    drawn = draw(logits, generator, SamplingOptions())
    torch.testing.assert_close(
        drawn.bincount(minlength=4) / 4000, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03, rtol=0
    )


def test_noise_of_two_workers_interleaves_to_that_of_one() -> None:
    whole = Noise(make_generator(3, "n")).normal(6, 2)
    parts = [Noise(make_generator(3, "n"), rank, 2).normal(3, 2) for rank in (0, 1)]
    torch.testing.assert_close(torch.stack(parts, dim=1).flatten(0, 1), whole)


def test_layer_norm_forgets_the_scale_of_hidden_values() -> None:
    torch.manual_seed(0)
    encoder = make_encoder((1, 4, 4), MlpBackboneSpec(kind="mlp", hidden=(8,), norm="layer"), 3)
    first = next(module for module in encoder.modules() if isinstance(module, nn.Linear))
    x = torch.randn(5, 1, 4, 4)
    before = encoder(x)
    with torch.no_grad():
        first.weight *= 1000
        first.bias *= 1000
    torch.testing.assert_close(encoder(x), before, rtol=1e-4, atol=1e-4)


def test_residual_layer_of_zeros_is_the_identity() -> None:
    encoder = make_encoder((1, 2, 4), MlpBackboneSpec(kind="mlp", hidden=(8, 8), residual=True), 8)
    x = torch.rand(5, 1, 2, 4)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        linears = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
        linears[-1].weight.copy_(torch.eye(8))
    assert encoder(x).equal(x.flatten(1))
