"""A tuning campaign: trials under Ray Tune, a ledger, and the winner trained at full length.  [ray]

Runs in the driver. The same call after a crash goes on: trials that ended are not run again, those that were cut off
start anew under the same number, and the search and the scheduler are told what is known (see `ledger`).
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.claim import Claim
from pipeline.errors import SpecError
from pipeline.outcome import Outcome, Stopwatch
from pipeline.progress import Progress, silent
from pipeline.ray_session import free_slots, gpus, ray_session
from pipeline.release.recorder import RunRecorder, only_logged
from pipeline.release.tracking import Tracking, open_tracking, run_status, start_or_continue_run
from pipeline.storage import Store, open_store
from pipeline.tuning.ledger import Ledger, Trial, campaign_key
from pipeline.tuning.search import best_of
from pipeline.tuning.space import Campaign, needs_extractor
from pipeline.workflow import open_base_corpus, train_job

# Tune writes its own log files of every result, and takes Ctrl-C for a wish to finish the trials first.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # a table of its own on the terminal
# A pruned trial flushes its last metrics to MLflow before its process is used again.
os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "10")

from ray import tune

if TYPE_CHECKING:
    from pipeline.data.prepared import Prepared

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

    Raises: AtelierError; the campaign's MLflow run is then FAILED, or KILLED when the user stopped it. RunBusyError
    where another process has this campaign, which is left alone.
    """
    from pipeline.data.prepare import prepare

    watch = Stopwatch(since)
    store = open_store(campaign.base.storage)
    store.check_writable()
    open_base_corpus(campaign.base)
    with watch.stage("tracking"):
        tracking = open_tracking(campaign.base, store)
    progress("start", 0, None, "starting Ray")
    start = time.time()
    with ray_session(address):
        watch.add("ray_start", time.time() - start)
        slots = concurrency(campaign)
        with watch.stage("prepare"):
            prepared = prepare(campaign.base, store, progress)
            prepared.verify(progress)
            if not prepared.manifest.splits.get("validation", {}).get("rows", 0):
                raise SpecError(
                    f"{campaign.spec.name}: the validation split is empty, and trials are compared on it; raise "
                    "data.split.validation of the conf"
                )
            measures_features = needs_extractor(campaign, prepared.layout)
            if measures_features:
                from pipeline.evaluation.features import find_extractors

                progress("extractor", 0, None, "a small network whose features measure samples")
                find_extractors(campaign.base, prepared)
        ledger = Ledger(store, campaign_key(store, campaign.spec.name, _identity(campaign, prepared)))
        with Claim(ledger.store, progress) as claim:
            if (state := ledger.state()).get("status") == "finished":  # by the one that was waited for
                return CampaignOutcome(**state["outcome"])
            run_id = start_or_continue_run(
                tracking,
                campaign.spec.name,
                ledger.key,
                ledger.key,
                {"atelier.campaign": ledger.key, "atelier.prepared": prepared.key},
                state.get("run_id"),
            )
            ledger.update(status="running", run_id=run_id, campaign=campaign.spec.model_dump(mode="json"))
            recorder = RunRecorder(tracking.uri, run_id)
            try:
                outcome = _campaign(
                    campaign, store, prepared, tracking, run_id, ledger, recorder, slots, progress, address, watch
                )
            except BaseException as error:  # the edge of the campaign: recorded whatever it was, and raised
                claim.check()  # its MLflow runs are another's now
                status: Literal["KILLED", "FAILED"] = (
                    "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
                )
                for trial in ledger.trials():
                    if trial.status == "running" and trial.run_id is not None:
                        with only_logged():
                            RunRecorder(tracking.uri, trial.run_id).finish(status)
                with only_logged():
                    recorder.finish(status)
                raise
            recorder.finish("FINISHED")
            outcome.seconds = watch.with_total()
            ledger.update(status="finished", outcome=vars(outcome))
    return outcome


def _identity(campaign: Campaign, prepared: Prepared) -> dict[str, Any]:
    base = campaign.base.model_dump(mode="json", exclude={"storage", "tracking", "registry", "release"})
    return {
        "campaign": campaign.spec.model_dump(mode="json", exclude=NOT_IDENTITY),
        "base": base,
        "prepared": prepared.key,
    }


def concurrency(campaign: Campaign) -> int:
    """How many trials run at once: as many as have all their processors, and their GPUs, at the same time.

    A trial of several workers is only a waiting process beside them; were it given a processor too, or were more of
    them started than there is room for, each would hold what the others' workers wait for. Raises: SpecError when
    not even one fits, as where `training.use_gpu` is true and the cluster has no GPU.
    """
    trial = campaign.spec.trial
    slots = free_slots(trial.threads_per_worker)
    room = slots // trial.num_workers
    if room == 0:
        raise SpecError(
            f"{campaign.spec.name}: a trial takes {trial.num_workers} × {trial.threads_per_worker} processors, and "
            f"there is room for {slots} such workers; lower trial.num_workers or trial.threads_per_worker"
        )
    if _on_gpus(campaign):
        room = min(room, gpus() // trial.num_workers)
    if room == 0:
        raise SpecError(
            f"{campaign.spec.name}: training.use_gpu is true, and a trial takes {trial.num_workers} GPU, of which the "
            f"cluster has {gpus()}; lower trial.num_workers, or set training.use_gpu to auto or false in the base spec"
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
        warnings=won.warnings,
        campaign=ledger.key,
        objective=campaign.objective,
        trials={status: statuses.count(status) for status in sorted(set(statuses))},
        best={"number": best.number, "values": best.values, "objective": best.objective, "steps": best.steps},
        framework_seconds_per_trial=framework_seconds(trials),
    )


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
    from pipeline.tuning.trial import TrialWork, run_trial
    from pipeline.tuning.under_tune import LedgerSearch, close_run, make_scheduler

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
    search = LedgerSearch(campaign, ledger, tracking, run_id, progress, spent)
    work = TrialWork(store.uri, prepared.key, tracking.uri, campaign.objective, campaign.mode)
    nested = campaign.spec.trial.num_workers > 1
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, work=work), _resources(campaign)),
        tune_config=tune.TuneConfig(
            metric=campaign.objective,
            mode=campaign.mode,
            search_alg=search,
            scheduler=make_scheduler(campaign, done),
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
    tuner.fit()


def _resources(campaign: Campaign) -> dict[str, int]:
    trial = campaign.spec.trial
    if trial.num_workers > 1:
        # Nothing at all is refused, and any share of a processor would be missing to the last of the workers.
        return {"CPU": 0, "memory": WAITING_BYTES}
    return {"CPU": trial.threads_per_worker} | ({"GPU": 1} if _on_gpus(campaign) else {})


def _on_gpus(campaign: Campaign) -> bool:
    """Whether each worker of a trial has a GPU to itself."""
    use_gpu = campaign.base.training.use_gpu
    return gpus() >= campaign.spec.trial.num_workers if use_gpu == "auto" else use_gpu
