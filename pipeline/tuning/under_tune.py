"""What Tune sees of a campaign: a searcher and a scheduler that know the ledger, and the end of each trial.  [ray]

Runs in the driver, called by Tune. Every report is in the ledger before Tune decides on it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import ray
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.errors import SpecError, TrainingFailedError
from pipeline.progress import Progress
from pipeline.release.recorder import RunRecorder
from pipeline.release.tracking import Tracking, start_or_continue_run
from pipeline.tuning.ledger import Ledger, Trial
from pipeline.tuning.search import best_of, propose
from pipeline.tuning.space import AshaSpec, Campaign


class BaselineKept(ASHAScheduler):
    """Successive halving that lets the conf's own trial, number 0, run to its end: the winner is then never worse than
    what it is to improve. Its slower start would often lose to higher learning rates at the first rung."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(tune_controller, trial, result)
        baseline = trial.config["number"] == 0 and result.get("step", 0) < self._max_t
        return TrialScheduler.CONTINUE if baseline else action


def make_scheduler(campaign: Campaign, done: list[Trial]) -> TrialScheduler:
    """The scheduler, with the rungs that the trials before a restart reached."""
    asha = campaign.spec.scheduler
    if not isinstance(asha, AshaSpec):
        return FIFOScheduler()
    scheduler = BaselineKept(
        time_attr="step",
        max_t=campaign.spec.trial.steps,
        grace_period=min(asha.grace_steps, campaign.spec.trial.steps),
        reduction_factor=asha.reduction_factor,
    )
    scheduler.set_search_properties(campaign.objective, campaign.mode)
    for trial in done:
        known = SimpleNamespace(trial_id=f"known-{trial.number}", config={"number": trial.number})
        scheduler.on_trial_add(None, known)
        for step, value in trial.reports:
            scheduler.on_trial_result(None, known, {"step": step, campaign.objective: value})
        scheduler.on_trial_remove(None, known)
    # The Tuner sets them again, and takes it for a mistake that they are there.
    scheduler._metric = scheduler._mode = scheduler._metric_op = None
    return scheduler


class LedgerSearch(Searcher):
    """Tune's view of the search: proposes the next trial, and writes what becomes of it into the ledger."""

    def __init__(
        self,
        campaign: Campaign,
        ledger: Ledger,
        tracking: Tracking,
        parent: str,
        progress: Progress,
        spent: float,
    ) -> None:
        super().__init__(metric=campaign.objective, mode=campaign.mode)
        self.campaign, self.ledger, self.tracking, self.parent = campaign, ledger, tracking, parent
        self.progress = progress
        self.started, self.spent = time.time(), spent
        self.trials = ledger.trials()
        self.cut_off = [trial for trial in self.trials if trial.status == "running"]
        self.running: dict[str, tuple[Trial, float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for `Tuner.restore`; the ledger is what this campaign goes on from."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """See `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """See `__getstate__`."""

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Mapping[str, Any], **spec: Any
    ) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        hours = self.campaign.spec.budget.hours
        if hours is not None and self._seconds() > hours * 3600:
            return Searcher.FINISHED
        if self.cut_off:
            old = self.cut_off.pop(0)
            trial = replace(old, attempt=old.attempt + 1, reports=[], error=None)
            self.trials[self.trials.index(old)] = trial
        elif len(self.trials) < self.campaign.spec.budget.trials:
            number = len(self.trials)
            trial = Trial(number, propose(self.campaign, number, self.trials))
            self.trials.append(trial)
        else:
            return Searcher.FINISHED
        try:
            spec = self.campaign.trial_spec(trial.values)
        except SpecError as error:
            # Values that are right one by one need not fit together; the number is used up, and the next is tried.
            trial.status, trial.error = "failed", str(error)
            self.ledger.write(trial)
            return self.suggest(trial_id)
        run_key = f"{self.ledger.key}-{trial.number:04d}"
        trial.run_id = start_or_continue_run(
            self.tracking,
            self.campaign.spec.name,
            run_key,
            run_key,
            {
                "mlflow.parentRunId": self.parent,
                "atelier.campaign": self.ledger.key,
                "atelier.trial": str(trial.number),
            },
            trial.run_id,
        )
        RunRecorder(self.tracking.uri, trial.run_id).log_params(trial.values)
        self.ledger.write(trial)
        self.running[trial_id] = trial, time.time()
        return {
            "number": trial.number,
            "spec": spec.as_dict(),
            "run_id": trial.run_id,
            # A Ray Train run of this name would be resumed, or found finished: each attempt has its own.
            "run_key": f"{run_key}-{trial.attempt}",
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial, _ = self.running[trial_id]
        if "failure" in result or self.campaign.objective not in result:
            return
        trial.reports.append((int(result["step"]), float(result[self.campaign.objective])))
        trial.training_seconds = float(result.get("seconds", 0.0))
        trial.process = result.get("process")
        self.ledger.write(trial)
        self._tell()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial, started = self.running.pop(trial_id)
        if result and (not trial.reports or trial.steps < int(result.get("step", 0))):
            self.running[trial_id] = trial, started
            self.on_trial_result(trial_id, result)
            del self.running[trial_id]
        trial.seconds = time.time() - started
        if error or (result and "failure" in result):
            trial.status = "failed"
            trial.error = str((result or {}).get("failure", "its process ended; Ray's logs of the trial say why"))
        else:
            trial.status = "finished" if trial.steps >= self.campaign.spec.trial.steps else "pruned"
        self.ledger.write(trial)
        if self.campaign.spec.trial.num_workers > 1:
            reap(f"{self.ledger.key}-{trial.number:04d}-{trial.attempt}")
        close_run(self.tracking, trial)
        # At every trial's end, so that a driver that is killed does not have those hours again.
        self.ledger.update(trial_seconds=self._seconds())
        self._tell()

    def _seconds(self) -> float:
        """What the trials took together, over all restarts."""
        return self.spent + time.time() - self.started

    def _tell(self) -> None:
        ended = [trial for trial in self.trials if trial.status != "running"]
        parts = [f"{len(self.running)} running"]
        with contextlib.suppress(TrainingFailedError):
            best = best_of(self.campaign, self.trials)
            parts.append(f"best {best.objective:.4g} (trial {best.number})")
        pruned = sum(trial.status == "pruned" for trial in self.trials)
        parts += [f"{pruned} pruned"] if pruned else []
        self.progress("tune", len(ended), self.campaign.spec.budget.trials, ", ".join(parts))


def close_run(tracking: Tracking, trial: Trial) -> None:
    """End the MLflow run of a trial that ended."""
    if trial.run_id is not None:
        recorder = RunRecorder(tracking.uri, trial.run_id)
        told = {"atelier.error": trial.error} if trial.error else {}
        recorder.log_tags({"atelier.trial_status": trial.status, **told})
        recorder.finish("FAILED" if trial.status == "failed" else "FINISHED")


def reap(run_key: str) -> None:
    """Free what the workers of an ended nested trial held.

    A trial that the scheduler ends while its workers train can leave their placement group behind; the next trial
    would wait for it for ever. Train's own cleaner works through the dashboard, which a local Ray does not have.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    from pipeline.training.worker import told

    group = told(run_key).get("placement_group")
    if group:
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
