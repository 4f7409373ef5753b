"""A tuning campaign: trials under Ray Tune, a ledger, and the winner trained at full length.  [ray]

Runs in the driver. The same call after a crash goes on: trials that ended are not run again, those that were cut off
start anew under the same number, and the search and the scheduler are told what is known (see `ledger`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pipeline.errors import SpecError, TrainingFailedError
from pipeline.progress import Progress, silent
from pipeline.ray_session import free_slots, ray_session
from pipeline.release.tracking import RunRecorder, Tracking, open_tracking, run_status, start_or_continue_run
from pipeline.storage import Store, open_store
from pipeline.tuning.ledger import Ledger, Trial, campaign_key
from pipeline.tuning.search import propose
from pipeline.tuning.space import AshaSpec, Campaign, needs_extractor
from pipeline.workflow import Outcome, Stopwatch, check_source, train_job

# Tune writes its own log files of every result, and takes Ctrl-C for a wish to finish the trials first.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # a table of its own on the terminal
# A pruned trial flushes its last metrics to MLflow before its process is used again.
os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "10")

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

if TYPE_CHECKING:
    from pipeline.data.shards import Prepared

NOT_IDENTITY: Any = {"budget": True, "trial": {"max_concurrent"}}
"""Parts of a campaign that do not make it another: an unfinished one goes on with more trials or hours."""


WAITING_BYTES = 2**20
"""What a trial that only waits for its workers is charged for."""


@dataclass
class CampaignOutcome(Outcome):
    """What `atelier tune` tells: the winner as a run's outcome, and the campaign around it."""

    campaign: str = ""
    objective: str = ""
    trials: dict[str, int] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    framework_seconds_per_trial: float | None = None


def tune_job(
    campaign: Campaign, progress: Progress = silent, address: str | None = None, since: float | None = None
) -> CampaignOutcome:
    """Run a campaign, or what is left of it; train, score and register its winner.

    Raises: AtelierError; the campaign's MLflow run is then FAILED, or KILLED when the user stopped it.
    """
    from pipeline.data.prepare import prepare

    watch = Stopwatch(since)
    store = open_store(campaign.base.storage)
    store.check_writable()
    check_source(campaign.base)
    with watch.stage("tracking"):
        tracking = open_tracking(campaign.base, store)
    progress("start", 0, None, "starting Ray")
    start = time.time()
    with ray_session(address):
        watch.add("ray_start", time.time() - start)
        slots = concurrency(campaign)
        with watch.stage("prepare"):
            prepared = prepare(campaign.base, store, progress)
            if not prepared.manifest.splits.get("validation", {}).get("rows", 0):
                raise SpecError(
                    f"{campaign.spec.name}: the validation split is empty, and trials are compared on it; raise "
                    "data.split.validation of the conf"
                )
            measures_features = needs_extractor(campaign, prepared.layout)
            if measures_features:
                from pipeline.evaluation.features import find_or_train_extractor

                progress("extractor", 0, None, "a small classifier whose features measure samples")
                find_or_train_extractor(prepared)
        ledger = Ledger(store, campaign_key(store, campaign.spec.name, _identity(campaign, prepared)))
        run_id = start_or_continue_run(
            tracking,
            campaign.spec.name,
            ledger.key,
            ledger.key,
            {"atelier.campaign": ledger.key, "atelier.prepared": prepared.key},
            ledger.state().get("run_id"),
        )
        ledger.update(status="running", run_id=run_id, campaign=campaign.spec.model_dump(mode="json"))
        recorder = RunRecorder(tracking.uri, run_id)
        try:
            outcome = _campaign(
                campaign, store, prepared, tracking, run_id, ledger, recorder, slots, progress, address, watch
            )
        except (KeyboardInterrupt, SystemExit):
            for trial in ledger.trials():
                if trial.status == "running" and trial.run_id is not None:
                    RunRecorder(tracking.uri, trial.run_id).finish("KILLED")
            recorder.finish("KILLED")
            raise
        except Exception:  # the edge of the campaign: recorded as failed whatever it was, and raised
            recorder.finish("FAILED")
            raise
    recorder.finish("FINISHED")
    outcome.seconds = watch.with_total()
    ledger.update(status="finished", outcome=vars(outcome))
    return outcome


def _identity(campaign: Campaign, prepared: Prepared) -> dict[str, Any]:
    base = campaign.base.model_dump(mode="json", exclude={"storage": True, "tracking": True, "registry": True})
    return {
        "campaign": campaign.spec.model_dump(mode="json", exclude=NOT_IDENTITY),
        "base": base,
        "prepared": prepared.key,
    }


def concurrency(campaign: Campaign) -> int:
    """How many trials run at once: as many as have all their processors at the same time.

    A trial of several workers is only a waiting process beside them; were it given a processor too, or were more of
    them started than there is room for, each would hold what the others' workers wait for. Raises: SpecError when
    not even one fits.
    """
    trial = campaign.spec.trial
    slots = free_slots(trial.threads_per_worker)
    room = slots // trial.num_workers
    if room == 0:
        raise SpecError(
            f"{campaign.spec.name}: a trial takes {trial.num_workers} × {trial.threads_per_worker} processors, and "
            f"there is room for {slots} such workers; lower trial.num_workers or trial.threads_per_worker"
        )
    return min(room, trial.max_concurrent or room, campaign.spec.budget.trials)


def _campaign(
    campaign: Campaign,
    store: Store,
    prepared: Prepared,
    tracking: Tracking,
    run_id: str,
    ledger: Ledger,
    recorder: RunRecorder,
    slots: int,
    progress: Progress,
    address: str | None,
    watch: Stopwatch,
) -> CampaignOutcome:
    recorder.log_params({"objective": campaign.objective, **campaign.spec.model_dump(mode="json", exclude={"space"})})
    recorder.log_json(campaign.spec.model_dump(mode="json"), "campaign.json")
    with watch.stage("trials"):
        _run_trials(campaign, store, prepared, tracking, run_id, ledger, slots, progress)
    trials = ledger.trials()
    best = best_of(campaign, trials)
    recorder.log_metrics({f"best/{campaign.objective}": best.objective or 0.0}, 0)
    recorder.log_json([vars(trial) for trial in trials], "trials.json")
    with watch.stage("winner"):
        won = train_job(
            campaign.winner_spec(best.values),
            progress,
            address,
            key=f"{ledger.key}-winner",
            tags={"mlflow.parentRunId": run_id, "atelier.campaign": ledger.key},
        )
    recorder.log_metrics(won.metrics, 0)
    statuses = [trial.status for trial in trials]
    return CampaignOutcome(
        run_id=run_id,
        model_uri=won.model_uri,
        model_version=won.model_version,
        metrics=won.metrics,
        examples_per_second=won.examples_per_second,
        prepared=prepared.key,
        report=won.report,
        campaign=ledger.key,
        objective=campaign.objective,
        trials={status: statuses.count(status) for status in sorted(set(statuses))},
        best={"number": best.number, "values": best.values, "objective": best.objective, "steps": best.steps},
        framework_seconds_per_trial=framework_seconds(trials),
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


def framework_seconds(trials: list[Trial]) -> float | None:
    """The median of what a trial took beside its training, without the first of each process, which starts it."""
    seen: set[str] = set()
    later: list[float] = []
    for trial in trials:
        if trial.process is None or trial.status == "failed":
            continue
        if trial.process in seen:
            later.append(trial.seconds - trial.training_seconds)
        seen.add(trial.process)
    return round(statistics.median(later), 2) if later else None


# --- under Tune -----------------------------------------------------------------------------------------------


def _run_trials(
    campaign: Campaign,
    store: Store,
    prepared: Prepared,
    tracking: Tracking,
    run_id: str,
    ledger: Ledger,
    slots: int,
    progress: Progress,
) -> None:
    # Imported here: in the trials' process this module is not needed, and this one is not needed by the driver.
    from pipeline.tuning.trial import TrialWork, run_trial

    known = ledger.trials()
    spent = float(ledger.state().get("trial_seconds", 0.0))
    hours = campaign.spec.budget.hours
    left = None if hours is None else hours * 3600 - spent
    done = [trial for trial in known if trial.status != "running"]
    for trial in done:
        # The driver may have been killed between the two records of a trial's end.
        if trial.run_id is not None and run_status(tracking.uri, trial.run_id) == "RUNNING":
            close_run(tracking, trial)
    if len(done) >= campaign.spec.budget.trials or (left is not None and left <= 0):
        return
    search = LedgerSearch(campaign, ledger, tracking, run_id, progress, left)
    work = TrialWork(store.uri, prepared.key, tracking.uri, campaign.objective, campaign.mode)
    nested = campaign.spec.trial.num_workers > 1
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, work=work), _resources(campaign)),
        tune_config=tune.TuneConfig(
            metric=campaign.objective,
            mode=campaign.mode,
            search_alg=search,
            scheduler=_scheduler(campaign, done),
            num_samples=campaign.spec.budget.trials - len(done),
            max_concurrent_trials=slots,
            # A trial that waits in `fit` cannot be ended but with its process.
            reuse_actors=not nested,
            time_budget_s=left,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{int(time.time())}",
            storage_path=store.path("campaigns", ledger.key, "tune"),
            storage_filesystem=None if store.is_local else store.filesystem,
            verbose=0,
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    progress("tune", len(done), campaign.spec.budget.trials, "starting trials")
    start = time.time()
    try:
        tuner.fit()
    finally:
        ledger.update(trial_seconds=spent + time.time() - start)


def _resources(campaign: Campaign) -> dict[str, int]:
    trial = campaign.spec.trial
    if trial.num_workers > 1:
        # Nothing at all is refused, and any share of a processor would be missing to the last of the workers.
        return {"CPU": 0, "memory": WAITING_BYTES}
    gpus = ray.cluster_resources().get("GPU", 0)
    return {"CPU": trial.threads_per_worker} | ({"GPU": 1} if gpus and campaign.base.training.use_gpu else {})


def _scheduler(campaign: Campaign, done: list[Trial]) -> TrialScheduler:
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


class BaselineKept(ASHAScheduler):
    """Successive halving that lets the conf's own trial, number 0, run to its end: the winner is then never worse than
    what it is to improve. Its slower start would often lose to higher learning rates at the first rung."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(tune_controller, trial, result)
        baseline = trial.config["number"] == 0 and result.get("step", 0) < self._max_t
        return TrialScheduler.CONTINUE if baseline else action


class LedgerSearch(Searcher):
    """Tune's view of the search: proposes the next trial, and writes what becomes of it into the ledger."""

    def __init__(
        self,
        campaign: Campaign,
        ledger: Ledger,
        tracking: Tracking,
        parent: str,
        progress: Progress,
        seconds: float | None,
    ) -> None:
        super().__init__(metric=campaign.objective, mode=campaign.mode)
        self.campaign, self.ledger, self.tracking, self.parent = campaign, ledger, tracking, parent
        self.progress = progress
        self.until = None if seconds is None else time.time() + seconds
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
        if self.until is not None and time.time() > self.until:
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
        self._tell()

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
