"""Which values to try next and which trial is best: functions of the campaign and of its trials, with Optuna.

Runs in the driver. Nothing is remembered between calls, so that a campaign that was stopped and goes on proposes
what it would have proposed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.errors import TrainingFailedError
from pipeline.models.base import derive_seed
from pipeline.tuning.ledger import Trial
from pipeline.tuning.space import Campaign, Choice, Range, WholeRange

if TYPE_CHECKING:
    import optuna


def propose(campaign: Campaign, number: int, trials: Iterable[Trial]) -> dict[str, Any]:
    """The values of trial `number`, by spec key, given the trials before it."""
    own = campaign.own_values()
    if number == 0 and campaign.spec.search.start_with_conf and own is not None:
        return own
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {key: _distribution(dimension) for key, dimension in campaign.spec.space.items()}
    study = optuna.create_study(
        direction="minimize" if campaign.mode == "min" else "maximize", sampler=_sampler(campaign, number)
    )
    for trial in trials:
        study.add_trial(_known(trial, space))
    values: dict[str, Any] = study.ask(space).params
    return values


def _sampler(campaign: Campaign, number: int) -> optuna.samplers.BaseSampler:
    import optuna

    search = campaign.spec.search
    seed = derive_seed(search.seed, "search", number) % 2**32
    if search.kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # The liar scores trials that still run as bad ones, so that those beside each other do not try the same.
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=search.startup_trials, constant_liar=True)


def _distribution(dimension: Range | WholeRange | Choice) -> optuna.distributions.BaseDistribution:
    import optuna

    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(dimension.values)
    logarithmic = dimension.kind.startswith("log")
    if isinstance(dimension, WholeRange):
        return optuna.distributions.IntDistribution(dimension.low, dimension.high, log=logarithmic)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=logarithmic)


def _known(trial: Trial, space: dict[str, optuna.distributions.BaseDistribution]) -> optuna.trial.FrozenTrial:
    import optuna

    states = {
        "finished": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "running": optuna.trial.TrialState.RUNNING,
        "failed": optuna.trial.TrialState.FAIL,
    }
    return optuna.trial.create_trial(
        state=states[trial.status],
        params=trial.values,
        distributions=space,
        value=trial.objective if trial.status == "finished" else None,
        intermediate_values=dict(trial.reports),
    )


def best_of(campaign: Campaign, trials: list[Trial]) -> Trial:
    """The best of the trials that ran to their end. Raises: TrainingFailedError when none did."""
    ended = [trial for trial in trials if trial.status == "finished" and trial.objective is not None]
    if not ended:
        reasons = [trial.error for trial in trials if trial.error]
        raise TrainingFailedError(
            f"{campaign.spec.name}: none of {len(trials)} trials ran to its end"
            + (f"; the first failed with: {reasons[0]}" if reasons else "; give budget.hours more time")
        )
    sign = 1 if campaign.mode == "min" else -1
    return min(ended, key=lambda trial: (sign * (trial.objective or 0.0), trial.number))
