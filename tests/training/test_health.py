"""Planted illnesses of trainings are named, with their numbers, and trainings that are well are not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.signs import overfit_share, variety, win_share
from pipeline.training.course import Course
from pipeline.training.health import Watch, warnings_of
from pipeline.training.in_process import LocalHooks
from pipeline.training.kinds import KINDS
from pipeline.training.session import Session
from tests.training.digits import digits_prepared, digits_spec


def trained(family: str, ill: Any = None, **changes: Any) -> tuple[Session, LocalHooks]:
    """A training of digits, of which `ill` spoils the model."""
    spec = digits_spec(family, **changes)
    session = Session(spec, digits_prepared(spec))
    if ill is not None:
        ill(session.stepper.model)
    hooks = LocalHooks(spec)
    session.run(hooks)
    return session, hooks


def kinds(hooks: LocalHooks) -> list[str]:
    return [warning.kind for warning in hooks.warnings]


@pytest.mark.parametrize("family", ["rnn", "vae", "gan"])
def test_a_healthy_training_gives_no_warning(family: str) -> None:
    session, hooks = trained(family, steps={"rnn": 80, "vae": 400, "gan": 200}[family])
    assert kinds(hooks) == []
    assert warnings_of(session.stepper.course) == []
    assert any(name.startswith("health/") for name in hooks.metrics)


def test_a_decoder_that_ignores_z_is_a_posterior_collapse() -> None:
    def ignore(model: Any) -> None:
        model.decoder.register_forward_pre_hook(lambda _, arguments: (0 * arguments[0], *arguments[1:]))

    _, hooks = trained("vae", ignore)
    (warning,) = hooks.warnings
    assert warning.kind == "posterior_collapse"
    assert "0 units are active" in warning.message
    assert hooks.metrics["validation/kl_nats"] < 0.1


def test_no_collapse_is_named_while_the_kl_is_annealed() -> None:
    watch = Watch(Course())
    for share, expected in [(0.5, []), (0.9, []), (1.0, []), (1.0, ["posterior_collapse"])]:
        scores, signs = {"kl_nats": 0.01, "active_units": 0.0}, {"kl_weight_share": share}
        found = watch.validation(1, 0.5, 100.0, {"train/loss": 1.0}, scores, signs)
        assert [one.kind for one in found] == expected


def test_a_generator_of_one_picture_is_a_mode_collapse() -> None:
    def repeat(model: Any) -> None:
        model.generator.register_forward_pre_hook(lambda _, given: (given[0][:1].expand_as(given[0]), *given[1:]))

    _, hooks = trained("gan", repeat)
    assert kinds(hooks) == ["mode_collapse"]
    assert hooks.warnings[0].message.startswith("generated examples lie 0.0% as far apart as real ones, and 0.0%")


def test_a_frozen_critic_lags() -> None:
    _, hooks = trained("gan", own={"critic_lr_scale": 1e-12})
    assert "critic_lag" in kinds(hooks)
    assert hooks.metrics["health/critic_win_share"] < 0.25


def test_a_blank_generator_is_dead() -> None:
    def blank(model: Any) -> None:
        model.generator.register_forward_hook(lambda _module, _inputs, drawn: 0 * drawn)

    _, hooks = trained("gan", blank)
    assert "dead_generator" in kinds(hooks)


def test_a_critic_of_few_examples_learns_them_by_heart() -> None:
    spec = digits_spec("gan", steps=150, lr=2e-3, validate_every=25, own={"critic_steps": 3})
    session = Session(spec, digits_prepared(spec, train=8))
    hooks = LocalHooks(spec)
    session.run(hooks)
    assert kinds(hooks) == ["critic_overfitting"]


def test_scores_that_part_are_named() -> None:
    spec = digits_spec("vae", steps=600, optimizer="adam", lr=3e-3)
    session = Session(spec, digits_prepared(spec, train=32))
    hooks = LocalHooks(spec)
    session.run(hooks)
    (warning,) = hooks.warnings
    assert warning.kind == "overfitting"
    assert "above its lowest" in warning.message and "the training loss fell" in warning.message


def test_a_warning_is_said_once_and_counted() -> None:
    watch = Watch(Course())
    watch.begin({"health/model_weight_norm": 1.0})
    found = [watch.report(step, {"health/model_weight_norm": 2.0 * step})[0] for step in (10, 200)]
    assert [warning.times for warning in found] == [1, 2]
    (told,) = warnings_of(watch.course)
    assert (told["step"], told["last_step"], told["times"]) == (10, 200, 2)
    assert "20, over 10 times 1" in told["message"] and told["advice"] == KINDS["exploding_weights"].advice


def test_a_gradient_is_compared_with_the_median_of_enough_reports() -> None:
    watch = Watch(Course())
    norms = [1.0, 100.0, 1.2, 0.9, 1.1, 40.0, 310.0]
    found = [watch.report(step, {"health/model_gradient_norm": norm}) for step, norm in enumerate(norms)]
    assert [len(one) for one in found] == [0] * 6 + [1]
    assert found[-1][0].message.startswith("the model gradient norm is 310, over 30 times")


@given(st.lists(st.floats(0.9, 1.1), min_size=10, max_size=60))
def test_a_noisy_loss_that_falls_is_not_rising(noise: list[float]) -> None:
    watch = Watch(Course())
    for step, factor in enumerate(noise):
        assert not watch.report(step, {"train/loss": (5.0 + 100.0 / (1 + step)) * factor})


def test_a_loss_that_comes_back_up_is_rising() -> None:
    watch = Watch(Course())
    losses = [10.0, 8.0, 6.0, 5.0, 4.5, 4.2, 4.0, 4.0, 4.0, 4.0, 7.0, 7.0, 7.1, 7.1, 7.0, 7.0]
    assert [step for step, loss in enumerate(losses) if watch.report(step, {"train/loss": loss})] == [14, 15]


def test_a_loss_is_not_rising_while_its_kl_is_annealed_nor_by_the_report_in_which_that_ends() -> None:
    watch = Watch(Course())
    watch.begin({}, annealed_share=0.0)
    annealed = [10.0, 8.0, 6.0, 5.0, 4.5, 4.2, 4.0, 7.0, 7.1, 7.0, 7.2, 7.1, 7.0, 7.1, 5.0]
    shares = [min(1.0, (report + 1) / 14.5) for report in range(15)]
    reports = [*zip(annealed, shares, strict=True), *((8.0 + report % 2 / 10, 1.0) for report in range(12))]
    for step, (loss, share) in enumerate(reports):
        assert not watch.report(step, {"train/loss": loss}, share), step
    # What comes then is compared with what came since.
    found = [bool(watch.report(step, {"train/loss": 9.0}, 1.0)) for step in range(27, 33)]
    assert found == [False] * 4 + [True] * 2


@pytest.mark.parametrize(("warmup", "expected"), [(0.0, ["loss_rising"]), (0.9, [])])
def test_without_a_validation_split_a_training_knows_that_its_kl_is_annealed(warmup: float, expected: Any) -> None:
    spec = digits_spec("vae", steps=200, own={"kl_warmup": warmup})
    session = Session(spec, digits_prepared(spec, validation=0))
    forward = session.stepper.model.forward

    def rising(batch: Any, phase: str, context: Any) -> Any:
        output = forward(batch, phase, context)
        output.means["loss"] = output.means["loss"] + 1000 * abs(context.progress - 0.3)
        return output

    session.stepper.model.forward = rising  # type: ignore[method-assign]
    hooks = LocalHooks(spec)
    session.run(hooks)
    assert kinds(hooks) == expected


def test_every_warning_is_in_the_document() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", Path("docs/health.md").read_text(), re.MULTILINE))
    assert told == KINDS.keys()


def test_variety_of_equal_examples_is_none_and_of_pairs_only_the_mean() -> None:
    one = torch.rand(1, 3, 5, generator=torch.Generator().manual_seed(0))
    assert variety(one.expand(6, -1, -1)) == (0, 0)
    mean, nearest = variety(torch.cat([one, one, -one, -one]))
    # Of the six pairs four are of different examples, 2 |x| apart.
    torch.testing.assert_close(mean, 2 * one.norm() * 4 / 6)
    assert nearest == 0
    mean, nearest = variety(torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0], [3, 3, 3, 3]]))
    assert (float(mean), float(nearest)) == ((0.25 + 0.75 + 1.0) / 3, 0.25)


def test_win_share_is_that_of_all_pairs() -> None:
    assert win_share(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0, 3.0])) == pytest.approx((1 + 1 + 0.5) / 6)
    assert win_share(torch.ones(3), torch.ones(4)) == 0.5


def test_overfit_share_is_the_place_of_held_out_scores_between_training_and_generated() -> None:
    spread = torch.linspace(-0.1, 0.1, 50)
    assert overfit_share(spread + 1.0, spread + 0.25, spread) == pytest.approx(0.75)
    assert overfit_share(spread + 1.0, spread + 0.99, spread) == 0  # within the error of the two means
    assert overfit_share(spread, spread, spread + 1.0) == 0
