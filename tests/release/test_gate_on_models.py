"""The gate's error rates on real, tiny autoencoders: equal in quality they are held, better by 5% they are promoted."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_bundles import tiny_spec
from torch import Tensor

from pipeline.data.codec import make_codec
from pipeline.data.prepared import SplitArrays
from pipeline.evaluation.compare import Measured
from pipeline.evaluation.likelihood import Likelihood
from pipeline.evaluation.metric import Subject
from pipeline.models import build_model
from pipeline.models.base import Batch, GenerativeModel, Noise, StepContext, make_generator
from pipeline.release.gate import Evidence, decide
from pipeline.spec import ReleaseSpec, RunSpec

pytestmark = pytest.mark.slow

EXAMPLES, REPEATS = 200, 100
POLICY = ReleaseSpec.model_validate({"improve": {"nll_nats": 0.0}, "repeats": 200})


def spec_of(seed: int) -> RunSpec:
    evaluation = {"nll_samples": 3, "batch_size": 20}
    return tiny_spec("image", seed=seed, evaluation=evaluation)


def pictures(count: int, seed: int) -> Tensor:
    """Pictures `[N, 1, 8, 8]` in [0, 1]: two smooth shapes in random amounts, and noise."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, 8)
    shapes = torch.stack([ramp.expand(8, 8), ramp.flip(0).unsqueeze(1).expand(8, 8)])
    amounts = torch.rand(count, 2, generator=generator)
    clean = torch.einsum("ns,shw->nhw", amounts, shapes) / 2
    return (clean + 0.1 * torch.rand(count, 8, 8, generator=generator)).clamp(0, 1).unsqueeze(1)


def measured(model: GenerativeModel, x: Tensor, seed: int) -> Measured:
    """The negative log-likelihood of `x` as the evaluation measures it, its noise by `seed`."""
    spec = spec_of(seed)
    codec = make_codec(spec.data.codec)
    layout = codec.layout(())
    model.importance_samples = spec.evaluation.nll_samples
    stored = (x * 255).round().to(torch.uint8)
    arrays = SplitArrays(stored, torch.full((len(x),), -1), [str(row) for row in range(len(x))], torch.zeros(0))
    subject = Subject(spec, layout, codec, model, arrays, {"rows": len(x)}, torch.device("cpu"))
    metric = Likelihood()
    sums = metric.measure(subject)
    blocks = metric.blocks(sums, subject)
    values = metric.scoring(list(blocks.values()), subject)
    return Measured(metric.finish(sums, subject)["nll_nats"], blocks, lambda part: values(part)["nll_nats"])


@pytest.fixture(scope="module")
def trained() -> GenerativeModel:
    """An autoencoder after 400 steps."""
    spec = spec_of(0)
    codec = make_codec(spec.data.codec)
    layout = codec.layout(())
    torch.manual_seed(0)
    model = build_model(spec, layout)
    (phase,) = model.phases()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    data = layout.to_model((pictures(2000, seed=1) * 255).round().to(torch.uint8))
    order = torch.Generator().manual_seed(0)
    for step in range(400):
        rows = torch.randint(len(data), (64,), generator=order)
        batch = Batch(data[rows], torch.full((64,), -1), rows)
        loss = model(batch, phase.name, StepContext(Noise(make_generator(0, "noise", step)), 64)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def worsened(model: GenerativeModel, by: float) -> GenerativeModel:
    """The model with noise on all its weights, as much as makes it worse by the share `by` on other pictures."""
    x = pictures(1000, seed=2)
    aim = measured(model, x, 0).score.value * (1 + by)
    weights = model.state_dict()
    generator = torch.Generator().manual_seed(3)
    noise = {name: torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        other = copy.deepcopy(model)
        other.load_state_dict({name: value + middle * noise[name] for name, value in weights.items()})
        if measured(other, x, 0).score.value < aim:
            low = middle
        else:
            high = middle
    return other


def outcomes(champion: GenerativeModel, challenger: GenerativeModel, other_noise: bool) -> list[str]:
    """Of each repeat with held-out pictures of its own. With `other_noise` the two draw different latents: models that
    are equal but not the same differ in that."""
    found = []
    for repeat in range(REPEATS):
        x = pictures(EXAMPLES, seed=100 + repeat)
        old = measured(champion, x, seed=repeat)
        new = measured(challenger, x, seed=repeat + 10_000 * other_noise)
        found.append(decide(POLICY, Evidence(measured={"nll_nats": new}), Evidence(measured={"nll_nats": old})).outcome)
    return found


def test_a_model_against_itself_is_always_held(trained: GenerativeModel) -> None:
    assert set(outcomes(trained, trained, other_noise=False)) == {"hold"}


def test_equal_models_that_draw_other_latents_are_held_in_95_of_100(trained: GenerativeModel) -> None:
    held = outcomes(trained, trained, other_noise=True).count("hold")
    print(f"equal models: held {held} of {REPEATS}")
    assert held >= 95


def test_a_model_better_by_5_percent_is_promoted_in_80_of_100(trained: GenerativeModel) -> None:
    promoted = outcomes(worsened(trained, 0.05), trained, other_noise=True).count("promote")
    print(f"better by 5%: promoted {promoted} of {REPEATS}")
    assert promoted >= 80
