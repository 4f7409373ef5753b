"""The autoencoder's parts against closed forms: likelihoods, learned prior, annealing, information, conditions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.data.layout import Layout
from pipeline.models import build_model
from pipeline.models.annealing import kl_weight
from pipeline.models.base import Batch, Noise, SamplingOptions, StepContext, make_generator
from pipeline.models.likelihoods import LEAST_WIDTH, WIDTH_PACE, Bernoulli, make_likelihood
from pipeline.models.priors import CouplingFlow, StandardNormal
from pipeline.models.vae import VariationalAutoencoder
from pipeline.models.vae_signals import SignalVae
from pipeline.spec import ConditionSpec, MlpBackboneSpec, VaeSpec, make_spec
from pipeline.training.session import Session
from pipeline.training.steps import Stepper
from tests.conftest import cell_spec, prepared_in_memory

PICTURE = Layout("image", "signal", (1, 2, 2), "uint8", "bernoulli", scale=1 / 255, labels=("a", "b"))
MLP = MlpBackboneSpec(kind="mlp", hidden=(16,))


def _noise(seed: int = 0) -> Noise:
    return Noise(make_generator(seed, "n"))


def _batch(x: torch.Tensor, label: int = -1) -> Batch:
    return Batch(x, torch.full((len(x),), label), torch.arange(len(x)))


def _family(**options: Any) -> VaeSpec:
    return VaeSpec(kind="vae", latent_size=3, **options)


# --- likelihoods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_dimension", [False, True])
@pytest.mark.parametrize("log_width", [-20.0, -4.0, -1.0, 3.0])
@pytest.mark.parametrize("centre", [-3.0, 0.0, 0.5012, 1.0])
def test_discretised_logistic_sums_to_one_over_all_levels(centre: float, log_width: float, per_dimension: bool) -> None:
    layout = Layout("image", "signal", (1, 1, 1), "uint8", "bernoulli", scale=1 / 255)
    likelihood = make_likelihood("discretised_logistic", layout, per_dimension).double()
    with torch.no_grad():
        likelihood.paced_log_width.fill_(log_width / WIDTH_PACE)
    levels = (torch.arange(256, dtype=torch.float64) / 255).view(-1, 1, 1, 1)
    nats = likelihood.log_prob(torch.full_like(levels, centre), levels)
    assert torch.isfinite(nats).all()
    assert float(nats.exp().sum().detach()) == pytest.approx(1.0, abs=1e-9)


def test_discretised_logistic_of_samples_in_minus_one_to_one_sums_to_one() -> None:
    layout = Layout("audio", "signal", (1, 1), "int16", "gaussian", scale=1 / 32767, low=-1.0)
    likelihood = make_likelihood("discretised_logistic", layout, False).double()
    levels = (torch.arange(-32767, 32768, dtype=torch.float64) / 32767).view(-1, 1, 1)
    nats = likelihood.log_prob(torch.full_like(levels, 0.1), levels)
    assert float(nats.exp().sum().detach()) == pytest.approx(1.0, abs=1e-9)


def test_gaussian_has_the_density_of_each_value_s_own_width() -> None:
    likelihood = make_likelihood("gaussian", PICTURE, per_dimension=True)
    with torch.no_grad():
        likelihood.paced_log_width.copy_(torch.tensor([[[-1.0, 0.5], [0.0, -2.0]]]) / WIDTH_PACE)
    decoded, x = torch.randn(5, 1, 2, 2), torch.rand(5, 1, 2, 2)
    expected = torch.distributions.Normal(decoded, likelihood.log_width().exp()).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.log_prob(decoded, x), expected)


def test_a_value_that_never_varies_has_a_bounded_density() -> None:
    likelihood = make_likelihood("gaussian", PICTURE, per_dimension=False)
    with torch.no_grad():
        likelihood.paced_log_width.fill_(-30.0 / WIDTH_PACE)
    x = torch.zeros(1, 1, 2, 2)
    most = -4 * (math.log(LEAST_WIDTH) + 0.5 * math.log(2 * math.pi))
    assert float(likelihood.log_prob(x, x).detach()) == pytest.approx(most, rel=1e-6)


def test_bernoulli_counts_a_grey_value_as_its_share_of_ones() -> None:
    logit = torch.full((1, 1, 1, 1), 0.4)
    one, zero, grey = (Bernoulli().log_prob(logit, torch.full_like(logit, x)) for x in (1.0, 0.0, 0.25))
    torch.testing.assert_close(grey, 0.25 * one + 0.75 * zero)


# --- prior --------------------------------------------------------------------------------------------------------


def _stirred(latent_size: int, condition_size: int = 0) -> CouplingFlow:
    torch.manual_seed(0)
    flow = CouplingFlow(latent_size, condition_size).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("latent_size", [2, 5])
@pytest.mark.parametrize("condition_size", [0, 3])
def test_a_learned_prior_has_the_density_of_what_it_draws(latent_size: int, condition_size: int) -> None:
    """By the change of variables: log p(z) = log N(u) - log |det dz/du|, the Jacobian by autograd."""
    flow = _stirred(latent_size, condition_size)
    unit = torch.randn(1, latent_size, dtype=torch.float64)
    condition = torch.randn(1, condition_size, dtype=torch.float64) if condition_size else None
    jacobian = torch.autograd.functional.jacobian(lambda u: flow.draw(u, condition)[0], unit)[:, 0]
    expected = StandardNormal().log_ratio(unit) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow.log_ratio(flow.draw(unit, condition), condition).detach(), expected)


def test_a_learned_prior_begins_as_the_standard_normal() -> None:
    flow, z = CouplingFlow(5), torch.randn(7, 5)
    torch.testing.assert_close(flow.draw(z), z)
    torch.testing.assert_close(flow.log_ratio(z), StandardNormal().log_ratio(z))


def test_a_learned_prior_that_is_still_normal_scores_as_the_normal_one() -> None:
    scores = []
    for prior in ("normal", "flow"):
        torch.manual_seed(0)
        model = SignalVae(PICTURE, _family(prior=prior, binarise="threshold"), MLP)
        for parameter in [*model.encoder.parameters(), *model.decoder.parameters()]:
            nn.init.normal_(parameter, std=0.3, generator=make_generator(len(parameter), "weights"))
        model.importance_samples = 400
        sums, _ = model.evaluate(_batch(torch.rand(20, 1, 2, 2, generator=make_generator(0, "x"))), _noise())
        scores.append(model.summarise(sums))
    assert scores[1]["nll_nats"] == pytest.approx(scores[0]["nll_nats"], rel=1e-5)
    assert scores[1]["kl_nats"] == pytest.approx(scores[0]["kl_nats"], rel=0.05)  # of draws, not in closed form


# --- objective ----------------------------------------------------------------------------------------------------


def test_the_weight_of_the_kl_rises_in_cycles_and_stays() -> None:
    family = _family(beta=2.0, kl_warmup=0.8, kl_cycles=4)
    seen = [kl_weight(family, progress) for progress in (0.0, 0.05, 0.1, 0.199, 0.2, 0.25, 0.79, 0.8, 1.0)]
    assert seen == pytest.approx([0.0, 1.0, 2.0, 2.0, 0.0, 1.0, 2.0, 2.0, 2.0])


def test_cycles_without_a_share_of_the_training_are_refused() -> None:
    with pytest.raises(ValidationError, match="kl_cycles 3 need kl_warmup"):
        _family(kl_cycles=3)


def _loss(model: VariationalAutoencoder, x: torch.Tensor, repeats: int = 1) -> float:
    with torch.no_grad():
        losses = [model(_batch(x), "model", StepContext(_noise(i), len(x), 1.0)).loss for i in range(repeats)]
    return float(torch.stack(losses).mean())


def test_the_importance_weighted_objective_is_the_held_out_bound() -> None:
    torch.manual_seed(0)
    model = SignalVae(PICTURE, _family(importance_samples=50, binarise="threshold"), MLP)
    x = torch.rand(16, 1, 2, 2)
    model.importance_samples = 50
    sums, _ = model.evaluate(_batch(x), _noise(99))
    assert _loss(model, x, 20) == pytest.approx(model.summarise(sums)["nll_nats"], rel=0.02)


def test_more_samples_make_a_smaller_loss() -> None:
    torch.manual_seed(0)
    model = SignalVae(PICTURE, _family(binarise="threshold"), MLP)
    x = torch.rand(16, 1, 2, 2)
    losses = []
    for samples in (1, 5, 100):
        model.family = model.family.model_copy(update={"importance_samples": samples})
        losses.append(_loss(model, x, 20))
    assert losses[0] > losses[1] > losses[2]


def test_free_bits_of_a_learned_prior_charge_the_whole_code() -> None:
    model = SignalVae(PICTURE, _family(prior="flow", free_bits_nats=100.0, binarise="threshold"), MLP)
    x = torch.rand(4, 1, 2, 2)
    output = model(_batch(x), "model", StepContext(_noise(), 4, 1.0))
    likelihood = output.means["elbo_nats"] + output.means["kl_nats"]
    assert float(output.loss.detach()) == pytest.approx(300.0 - float(likelihood), rel=1e-5)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_information_of_normal_codes_is_that_of_a_gaussian_channel(spread: float) -> None:
    """Means from N(0, spread^2), variance 0.25: log(1 + spread^2 / 0.25) / 2 a unit (Cover and Thomas 2006, 9.1)."""
    model = SignalVae(PICTURE, _family(binarise="threshold"), MLP)
    means = spread * torch.randn(20_000, 3, generator=make_generator(0, "means"))
    model.encode = lambda *_: (means, torch.full_like(means, math.log(0.25)))  # type: ignore[method-assign]
    scores = model.summarise(model.evaluate(_batch(torch.zeros(20_000, 1, 2, 2)), _noise())[0])
    assert scores["information_nats"] == pytest.approx(1.5 * math.log1p(spread**2 / 0.25), rel=0.01, abs=1e-5)


# --- aggressive training of the encoder ---------------------------------------------------------------------------


def _steps_of(stepper: Stepper) -> dict[str, int]:
    """How many steps the optimiser of each phase has taken."""
    return {name: int(next(iter(optimizer.state.values()))["step"]) for name, optimizer in stepper.optimizers.items()}


@pytest.mark.parametrize("modality", ["text", "image"])
def test_the_encoder_s_own_steps_move_the_encoder_alone_and_end_with_its_information(modality: str) -> None:
    spec = cell_spec("vae", modality).as_dict()
    spec["model"]["family"]["aggressive_steps"] = 2
    session = Session(make_spec(spec), prepared_in_memory(make_spec(spec)))
    stepper = session.stepper
    model = stepper.model
    assert isinstance(model, VariationalAutoencoder)
    assert [(phase.name, phase.repeats) for phase in stepper.phases] == [("encoder", 2), ("model", 1)]
    assert all(name.startswith(model.encoder_parameters) for name in stepper.members["encoder"])

    stepper.step(0, session.batches, 0.0)
    steps_of = {
        name: int(next(iter(optimizer.state.values()))["step"]) for name, optimizer in stepper.optimizers.items()
    }
    assert steps_of == {"encoder": 2, "model": 1}

    for information, goes_on in ((1.0, True), (1.5, True), (1.4, False), (3.0, False)):
        model.heed({"information_nats": information})
        assert model.takes("encoder", 0.1) is goes_on
    stepper.step(1, session.batches, 0.1)
    steps_of = {
        name: int(next(iter(optimizer.state.values()))["step"]) for name, optimizer in stepper.optimizers.items()
    }
    assert steps_of == {"encoder": 2, "model": 2}
    session.batches.close()


def test_the_encoder_has_no_steps_of_its_own_in_the_second_half() -> None:
    model = SignalVae(PICTURE, _family(aggressive_steps=3), MLP)
    assert model.takes("encoder", 0.49)
    assert not model.takes("encoder", 0.5)
    assert model.takes("model", 1.0)


# --- conditions ---------------------------------------------------------------------------------------------------


def _conditional(prior: str = "flow") -> SignalVae:
    torch.manual_seed(0)
    model = SignalVae(PICTURE, _family(prior=prior), MLP, ConditionSpec(on=("label",), size=4)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.requires_grad_(False)


def test_posterior_likelihood_and_prior_are_given_the_condition() -> None:
    model = _conditional()
    x, z = torch.rand(6, 1, 2, 2), torch.randn(6, 3)
    told = [model.condition_of(_batch(x, label)) for label in (0, 1)]
    assert not torch.allclose(model.encode(x, told[0])[0], model.encode(x, told[1])[0])
    assert not torch.allclose(model.decode(z, told[0]), model.decode(z, told[1]))
    assert not torch.allclose(model.prior.log_ratio(z, told[0]), model.prior.log_ratio(z, told[1]))


def test_the_score_of_an_example_is_that_of_its_own_label() -> None:
    model, x = _conditional(), torch.rand(6, 1, 2, 2)
    parts = [model.evaluate(_batch(x, label), _noise())[0]["nll"] for label in (0, 1)]
    assert float(parts[0]) != pytest.approx(float(parts[1]), rel=1e-3)


def test_samples_are_those_of_the_label_that_is_asked_for() -> None:
    model = _conditional("normal")
    z = Noise(make_generator(0, "s")).normal(4, 3)
    for label in (0, 1):
        drawn = model.sample(4, make_generator(0, "s"), SamplingOptions(asked_label=label))
        torch.testing.assert_close(drawn, model.decode(z, model.condition_of(_batch(drawn, label))))


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_a_conditional_model_that_is_told_nothing_decodes_as_the_unknown(modality: str) -> None:
    spec = cell_spec("vae", modality).as_dict()
    spec["model"]["condition"] = {"on": ["label"], "size": 4}
    prepared = prepared_in_memory(make_spec(spec))
    model = build_model(make_spec(spec), prepared.layout).eval()
    assert isinstance(model, VariationalAutoencoder)
    z = torch.randn(3, 4)
    unknown = model.condition_of(_batch(torch.zeros(3, 1)))
    assert model.decode(z).equal(model.decode(z, unknown))


@pytest.mark.parametrize(
    ("codec", "likelihood", "message"),
    [
        ({"kind": "waveform", "num_samples": 256}, "bernoulli", "is of values between 0 and 1"),
        ({"kind": "log_mel", "num_samples": 8192}, "discretised_logistic", "is of whole numbers"),
    ],
)
def test_a_likelihood_that_the_codec_s_values_do_not_have_is_refused(
    codec: dict[str, Any], likelihood: str, message: str
) -> None:
    spec = cell_spec("vae", "audio").as_dict()
    spec["data"]["codec"] = codec
    spec["model"]["family"]["likelihood"] = likelihood
    with pytest.raises(Exception, match=message):
        make_spec(spec)


@pytest.mark.parametrize("likelihood", ["gaussian", "discretised_logistic"])
def test_a_width_below_the_least_is_widened_by_what_is_far_off(likelihood: str) -> None:
    model = make_likelihood(likelihood, PICTURE, per_dimension=False)
    width = next(model.parameters())
    with torch.no_grad():
        width.fill_(2 * math.log(LEAST_WIDTH) / WIDTH_PACE)
    decoded = torch.zeros(1, *PICTURE.shape)
    for x, grows in ((decoded, False), (decoded + 0.5, True)):
        (gradient,) = torch.autograd.grad(-model.log_prob(decoded, x).sum(), width)
        assert bool(gradient < 0) == grows, "descent moves the width against its gradient"
        assert bool(gradient == 0) != grows
