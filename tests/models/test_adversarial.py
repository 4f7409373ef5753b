"""Critics against closed forms: losses, penalties, spectral norms, shuffled phases, the projection, sampled tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.data.codec import make_codec
from pipeline.data.layout import Layout
from pipeline.data.prompts import PROMPT_VOCABULARY
from pipeline.models.adversarial import LOSSES, gradient_penalty, real_gradient_penalty
from pipeline.models.base import Batch, Noise, SamplingOptions, StepContext, make_generator
from pipeline.models.conditioning import Asked
from pipeline.models.critic import Critic, shuffle_phase
from pipeline.models.gan import GenerativeAdversarialNetwork
from pipeline.models.generator import Generator, Writer, gumbel_softmax, temperature_of
from pipeline.models.spectral import largest_singular_value, normalise_spectra
from pipeline.spec import (
    ConditionSpec,
    ConvBackboneSpec,
    GanSpec,
    GumbelSpec,
    MlpBackboneSpec,
    RecurrentBackboneSpec,
    ResnetBackboneSpec,
    make_spec,
)
from pipeline.training.session import Session
from tests.conftest import cell_spec, prepared_in_memory

PICTURES = Layout("image", "signal", (1, 8, 8), "uint8", "bernoulli", labels=("cat", "dog"), label_counts=(3, 1))
WAVES = Layout("audio", "signal", (1, 64), "int16", "gaussian", low=-1.0)
BACKBONES = {
    "mlp": MlpBackboneSpec(kind="mlp", hidden=(8, 8)),
    "conv": ConvBackboneSpec(kind="conv", channels=(4, 8), kernel=3),
    "resnet": ResnetBackboneSpec(kind="resnet", channels=(4, 8)),
}
REAL, FAKE = torch.tensor([1.5, -0.5]), torch.tensor([0.25, 2.0])


def noise(seed: int = 0, rank: int = 0, world_size: int = 1) -> Noise:
    return Noise(make_generator(seed, "noise"), rank, world_size)


# --- losses and penalties -------------------------------------------------------------------------------------------


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("loss", "critic", "generator"),
    [
        ("wasserstein", 1.125 - 0.5, -1.125),
        (
            "minimax",
            -(_log_sigmoid(1.5) + _log_sigmoid(-0.5)) / 2 - (_log_sigmoid(-0.25) + _log_sigmoid(-2.0)) / 2,
            (_log_sigmoid(-0.25) + _log_sigmoid(-2.0)) / 2,
        ),
        (
            "non_saturating",
            -(_log_sigmoid(1.5) + _log_sigmoid(-0.5)) / 2 - (_log_sigmoid(-0.25) + _log_sigmoid(-2.0)) / 2,
            -(_log_sigmoid(0.25) + _log_sigmoid(2.0)) / 2,
        ),
        ("least_squares", 0.5 * (0.25 + 2.25) / 2 + 0.5 * (0.0625 + 4) / 2, 0.5 * (0.5625 + 1) / 2),
        ("hinge", (0 + 1.5) / 2 + (1.25 + 3) / 2, -1.125),
    ],
)
def test_losses_agree_with_their_formulas(loss: str, critic: float, generator: float) -> None:
    critic_loss, generator_loss = LOSSES[loss]
    assert float(critic_loss(REAL, FAKE)) == pytest.approx(critic, rel=1e-6)
    assert float(generator_loss(FAKE)) == pytest.approx(generator, rel=1e-6)


def test_penalties_of_a_linear_critic_are_exact() -> None:
    critic = nn.Linear(3, 1)

    def score(x: Tensor) -> Tensor:
        return critic(x.flatten(1)).squeeze(1)

    real, fake = torch.randn(5, 1, 3), torch.randn(5, 1, 3)
    penalty, norm = gradient_penalty(score, real, fake, torch.rand(5))
    expected = critic.weight.norm()
    torch.testing.assert_close(norm, expected.detach())
    torch.testing.assert_close(penalty, (expected - 1).square())
    # The double backward: d/dW (|W| - 1)^2 = 2 (|W| - 1) W / |W|.
    penalty.backward()
    assert critic.weight.grad is not None
    torch.testing.assert_close(critic.weight.grad, (2 * (expected - 1) * critic.weight / expected).detach())
    critic.zero_grad()
    penalty = real_gradient_penalty(score, real)
    torch.testing.assert_close(penalty, expected.square() / 2)
    penalty.backward()
    torch.testing.assert_close(critic.weight.grad, critic.weight.detach())


def test_gradient_penalty_looks_between_real_and_fake() -> None:
    """D(x) = x^2 / 2 has the gradient x, which is `share` of the way from fake to real."""
    real, fake = torch.full((3, 1), 3.0), torch.full((3, 1), 1.0)
    share = torch.tensor([0.0, 0.5, 1.0])
    _, norm = gradient_penalty(lambda x: x.square().sum(1) / 2, real, fake, share)
    assert float(norm) == pytest.approx((1 + 2 + 3) / 3)


# --- spectral normalisation -----------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_largest_singular_value_is_the_one_of_the_decomposition(rows: int, columns: int, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(largest_singular_value(weight), torch.linalg.svdvals(weight)[0], rtol=2e-3, atol=0)


def test_gradient_of_the_largest_singular_value_is_that_of_the_decomposition() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    (seen,) = torch.autograd.grad(largest_singular_value(weight), weight)
    (expected,) = torch.autograd.grad(torch.linalg.svdvals(weight.flatten(1))[0], weight)
    torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_every_layer_of_a_normalised_critic_is_1_lipschitz_whatever_its_weights(backbone: MlpBackboneSpec) -> None:
    torch.manual_seed(0)
    critic = _critic(GanSpec(kind="gan", spectral_norm=True), backbone)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.mul_(7)
    layers = [module for module in critic.modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding)]
    assert len(layers) > 3
    for layer in layers:
        assert float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]) == pytest.approx(1, abs=2e-3)
        assert not list(layer.buffers()), "the norm keeps no state"


def test_spectral_norm_has_no_state() -> None:
    layer = nn.Linear(4, 3)
    normalise_spectra(layer)
    first = layer.weight.detach().clone()
    assert torch.equal(layer.weight, first)
    assert {name for name, _ in layer.state_dict().items()} == {"bias", "parametrizations.weight.original"}


# --- the critic -----------------------------------------------------------------------------------------------------


def _critic(family: GanSpec, backbone: MlpBackboneSpec, layout: Layout = PICTURES) -> Critic:
    condition = ConditionSpec(on=("label",), size=4) if layout.labels else ConditionSpec()
    return Critic(layout.shape, layout, family, backbone, condition)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_projection_is_what_a_label_adds_to_the_score(backbone: MlpBackboneSpec) -> None:
    torch.manual_seed(0)
    critic = _critic(GanSpec(kind="gan"), backbone)
    x, label = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    features = critic.encoder.features(x)
    vectors = critic.projection(critic.conditioner.label.weight[label])
    expected = critic.encoder.head(features).squeeze(1) + (vectors * features).sum(1)
    torch.testing.assert_close(critic(x, Asked(label)), expected)


@given(st.integers(1, 9), st.integers(0, 4), st.integers(0, 100))
def test_a_shuffled_phase_moves_by_at_most_n_and_reflects(length: int, most: int, seed: int) -> None:
    x = torch.arange(length, dtype=torch.float32).expand(3, 2, length)
    shuffled = shuffle_phase(x, most, noise(seed))
    possible = []
    for steps in range(-min(most, length - 1), min(most, length - 1) + 1):
        places = [abs(t - steps) for t in range(length)]
        possible.append([float(2 * (length - 1) - p if p >= length else p) for p in places])
    for example in shuffled:
        assert example[0].tolist() in possible
        assert torch.equal(example[0], example[1])


def test_every_shift_of_a_phase_is_as_likely() -> None:
    x = torch.arange(9.0).expand(7000, 1, 9)
    middles = shuffle_phase(x, 2, noise())[:, 0, 4].long()
    shares = torch.bincount(middles, minlength=9)[2:7] / 7000
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.02, rtol=0)
    assert int(shares.sum().round()) == 1


def test_phases_are_shuffled_in_training_alone() -> None:
    torch.manual_seed(0)
    critic = _critic(GanSpec(kind="gan", phase_shuffle=2), BACKBONES["conv"], WAVES)  # type: ignore[arg-type]
    x = torch.rand(2, 1, 64)
    assert not torch.equal(critic(x, noise=noise(0)), critic(x, noise=noise(1)))
    assert torch.equal(critic.eval()(x), critic(x))


# --- sampled tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("straight_through", [True, False])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_gumbel_softmax_draws_tokens_as_often_as_the_softmax_says(temperature: float, straight_through: bool) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0]).view(1, 4, 1).expand(20_000, 4, 1)
    drawn = gumbel_softmax(logits, noise(), temperature, straight_through)
    torch.testing.assert_close(drawn.sum(1), torch.ones(20_000, 1))
    shares = torch.bincount(drawn.argmax(1).flatten(), minlength=4) / 20_000
    torch.testing.assert_close(shares, logits[0, :, 0].softmax(0), atol=0.012, rtol=0)


def test_straight_through_shows_one_hots_and_has_the_gradient_of_soft_ones() -> None:
    torch.manual_seed(0)
    logits, weight = torch.randn(3, 5, 2, requires_grad=True), torch.randn(3, 5, 2)
    gradients = []
    for straight_through in (True, False):
        drawn = gumbel_softmax(logits, noise(), 0.7, straight_through)
        if straight_through:
            torch.testing.assert_close(drawn.detach().sort(1).values[:, -1], torch.ones(3, 2))
            torch.testing.assert_close(drawn.detach().sort(1).values[:, :-1], torch.zeros(3, 4, 2))
        gradients += torch.autograd.grad((drawn * weight).sum(), logits)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_temperature_goes_geometrically() -> None:
    gumbel = GumbelSpec(temperature=4.0, final_temperature=0.25)
    assert [temperature_of(gumbel, progress) for progress in (0, 0.5, 1)] == pytest.approx([4.0, 1.0, 0.25])


def test_a_writer_sees_what_the_critic_sees_of_every_token_before() -> None:
    """Each token is fed back: another one at a place changes the logits of those behind it alone."""
    torch.manual_seed(0)
    layout = Layout("text", "tokens", (6,), "uint8", "categorical", vocabulary=4)
    writer = Writer(2, RecurrentBackboneSpec(kind="recurrent", hidden_size=8, embedding_size=4), layout)

    def written(token: int) -> tuple[list[Tensor], Tensor]:
        seen: list[Tensor] = []

        def one_hots(logits: Tensor) -> Tensor:
            seen.append(logits)
            chosen = token if len(seen) == 3 else 0
            return torch.eye(4)[chosen].view(1, 4, 1)

        return seen, writer(torch.ones(1, 2), one_hots)

    (first, one), (second, other) = written(0), written(1)
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True] * 3 + [False] * 3
    assert one.shape == (1, 4, 6)
    assert one.argmax(1).tolist() == [[0] * 6]
    assert other.argmax(1).tolist() == [[0, 0, 1, 0, 0, 0]]


def test_what_a_generator_reads_are_the_logits_that_it_writes_from() -> None:
    torch.manual_seed(0)
    layout = Layout("text", "tokens", (6,), "uint8", "categorical", vocabulary=4)
    backbone = RecurrentBackboneSpec(kind="recurrent", cell="gru", hidden_size=8, embedding_size=4)
    family = GanSpec(kind="gan", latent_size=2, gumbel=GumbelSpec())
    generator = Generator((4, 6), layout, family, backbone, ConditionSpec())
    assert isinstance(generator.network, Writer)
    x, z = torch.randint(4, (3, 6)), torch.randn(3, 2)
    seen: list[Tensor] = []

    def one_hots(logits: Tensor) -> Tensor:
        seen.append(logits)
        return nn.functional.one_hot(x[:, len(seen) - 1], 4).unsqueeze(2).float()

    generator.network(z, one_hots)
    written = torch.cat(seen, dim=2)
    torch.testing.assert_close(generator.network.read(x, z), written)
    known = -written.log_softmax(1).gather(1, x.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(generator.nats(x, z, None), known)


# --- the family -----------------------------------------------------------------------------------------------------


def _family(family: GanSpec, dropout: float = 0.0) -> GenerativeAdversarialNetwork:
    torch.manual_seed(0)
    condition = ConditionSpec(on=("label",), size=4, dropout=dropout)
    return GenerativeAdversarialNetwork(PICTURES, family, BACKBONES["conv"], condition)  # type: ignore[arg-type]


def test_generated_examples_depend_on_what_is_asked_for() -> None:
    model = _family(GanSpec(kind="gan", latent_size=3)).eval()
    cats, dogs, again = (
        model.sample(2, make_generator(0, "sample"), SamplingOptions(asked_label=label)) for label in (0, 1, 0)
    )
    assert torch.equal(cats, again)
    assert not torch.equal(cats, dogs)


def test_hidden_conditions_are_hidden_from_generator_and_critic_alike() -> None:
    model = _family(GanSpec(kind="gan", latent_size=3), dropout=0.5)
    asked = model._hidden(Asked(torch.ones(4000, dtype=torch.int64)), noise())
    assert set(asked.label.tolist()) == {-1, 1}
    assert float((asked.label < 0).double().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("phase", ["critic", "generator"])
def test_every_option_together_gives_finite_gradients_for_its_phase_alone(phase: str) -> None:
    model = _family(
        GanSpec(
            kind="gan",
            latent_size=3,
            loss="hinge",
            real_gradient_penalty=1.0,
            spectral_norm=True,
            augment=("colour", "translation", "cutout"),
        ),
        dropout=0.1,
    )
    batch = Batch(torch.rand(6, 1, 8, 8), torch.tensor([0, 1, -1, 0, 1, 0]), torch.arange(6))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(phase))
    output = model(batch if phase == "critic" else None, phase, StepContext(noise(), 6))
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith(phase):
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name


def test_a_generator_that_is_asked_for_prompts_learns_from_those_of_a_batch() -> None:
    spec = cell_spec("gan", "image")
    layout = replace(make_codec(spec.data.codec).layout(), prompts=("one",), prompt_counts=(1,), prompt_length=8)
    model = GenerativeAdversarialNetwork(layout, spec.model.family, spec.model.backbone, ConditionSpec(on=("prompt",)))
    assert [phase.needs_data for phase in model.phases()] == [True, True]
    prompt = torch.randint(0, PROMPT_VOCABULARY, (4, 8))
    batch = Batch(torch.rand(4, *layout.shape), torch.full((4,), -1), torch.arange(4), prompt)
    asked = model._asked(StepContext(Noise(make_generator(0, "noise")), 4), batch)
    assert asked is not None and asked.prompt is not None
    assert asked.prompt.equal(prompt)
    assert torch.isfinite(model(batch, "generator", StepContext(Noise(make_generator(0, "noise")), 4)).loss)


def test_a_generator_is_a_language_model_first_and_the_critic_begins_shortly_before_it_learns_from_it() -> None:
    spec = cell_spec("gan", "text", steps=100).as_dict()
    spec["model"]["backbone"] = {"kind": "recurrent", "cell": "gru", "hidden_size": 8, "embedding_size": 4}
    critic = {"kind": "conv", "channels": [8], "kernel": 3}
    pretraining = {"share": 0.5, "lr_scale": 20}
    spec["model"]["family"] |= {"gumbel": {}, "critic_backbone": critic, "pretraining": pretraining, "critic_steps": 1}
    made = make_spec(spec)
    session = Session(made, prepared_in_memory(made))
    model = session.stepper.model
    taken = {p: [phase.name for phase in model.phases() if model.takes(phase.name, p)] for p in (0.0, 0.46, 0.5, 1.0)}
    assert taken == {
        0.0: ["likelihood"],
        0.46: ["likelihood", "critic"],
        0.5: ["critic", "generator"],
        1.0: ["critic", "generator"],
    }
    nats = [float(session.stepper.step(step, session.batches, 0.0)["nats_per_token"]) for step in range(60)]
    assert sum(nats[-5:]) < 0.9 * sum(nats[:5])
    session.stepper.step(60, session.batches, 0.46)
    before = {name: value.clone() for name, value in session.stepper.state.weights().items()}
    session.stepper.step(61, session.batches, 0.7)
    after = session.stepper.state.weights()
    assert {name.split(".")[0] for name in before if not before[name].equal(after[name])} == {"critic", "generator"}
