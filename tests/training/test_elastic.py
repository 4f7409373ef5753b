"""When an elastic training changes its number of workers, and what a worker hears of a node that will be taken away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.preemption import PreemptionInfo

from pipeline.training import asked as asked_module
from pipeline.training import elastic
from pipeline.training.asked import LEAST_MARGIN_SECONDS, Asked, held_at
from pipeline.training.checkpoint import Position
from pipeline.training.elastic import ElasticPolicy
from pipeline.training.wishes import Wish
from tests.training.key_value_store import announce, kept_here

RUN = "run"


class Cluster:
    """What the policy sees: rooms by node, nodes that will go, and the words between it and the workers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rooms, self.leaving = {"a": {"CPU": 1.0}}, dict[str, int]()
        self.words = kept_here(monkeypatch)
        monkeypatch.setattr(elastic.ray, "get", lambda value, timeout: value)
        monkeypatch.setattr(elastic.ray._private.state.state, "get_draining_nodes", lambda: self.leaving)
        monkeypatch.setattr(ElasticPolicy, "GET_RESERVED_RESOURCES_INTERVAL_S", 0)
        monkeypatch.setattr(ElasticPolicy, "_maybe_send_resource_request", lambda policy: None)
        remote = SimpleNamespace(remote=lambda requester, recompute: dict(self.rooms))
        coordinator = SimpleNamespace(get_reserved_resources=remote)
        monkeypatch.setattr(ElasticPolicy, "_autoscaling_coordinator", coordinator)
        scaling = ScalingConfig(num_workers=(1, 3), elastic_resize_monitor_interval_s=0)
        self.policy = ElasticPolicy(scaling, RUN)

    def decide(self, running: int) -> Any:
        state = SimpleNamespace(start_time=float("-inf"), num_workers=running)
        return self.policy.make_decision_for_running_worker_group(state, None)  # type: ignore[arg-type]

    @property
    def asks(self) -> bool:
        """Whether the workers are asked to stand still."""
        return asked_module._key(RUN, Wish.HOLD.name) in self.words

    def stand_still(self, step: int) -> None:
        """What rank 0 does after the checkpoint, for whatever cause."""
        asked_module._put(RUN, asked_module.HELD, step)

    def start(self, num_workers: int) -> None:
        scaling = self.policy.scaling_config
        self.policy.on_controller_start_worker_group(scaling_config=scaling, num_workers=num_workers)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_it_grows_only_after_a_checkpoint_at_which_the_workers_stand_still(cluster: Cluster) -> None:
    assert isinstance(cluster.decide(1), NoopDecision) and not cluster.asks
    cluster.rooms["b"] = {"CPU": 1.0}
    for _ in range(2):
        assert isinstance(cluster.decide(1), NoopDecision) and cluster.asks
    cluster.stand_still(17)
    decision = cluster.decide(1)
    assert isinstance(decision, ResizeDecision) and decision.num_workers == 2
    assert cluster.asks, "until they are ended they take no step that would be lost"
    cluster.start(2)
    assert cluster.words == {}


@pytest.mark.parametrize("restarted", [True, False])
def test_a_step_at_which_the_workers_once_stood_still_is_no_answer(restarted: bool, cluster: Cluster) -> None:
    cluster.stand_still(17)  # a signal, or a notice
    if restarted:
        cluster.start(1)
        assert held_at(RUN) is None
    cluster.rooms["b"] = {"CPU": 1.0}
    for _ in range(2):
        assert isinstance(cluster.decide(1), NoopDecision), "the workers are in the middle of a step"
    cluster.stand_still(23)
    assert isinstance(cluster.decide(1), ResizeDecision)


def test_workers_that_go_on_stand_still_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    kept_here(monkeypatch)
    seen: list[int | None] = []
    monkeypatch.setattr(asked_module, "_wait", lambda over, until=None: seen.append(held_at(RUN)))
    asked = Asked(RUN, rank=0)
    asked.obeyed(Wish.HOLD, Position(7))
    asked.close()
    assert seen == [7] and held_at(RUN) is None


def test_it_goes_on_as_it_is_when_the_room_was_gone_again(cluster: Cluster) -> None:
    cluster.rooms["b"] = {"CPU": 1.0}
    cluster.decide(1)
    del cluster.rooms["b"]
    cluster.stand_still(17)
    assert isinstance(cluster.decide(1), NoopDecision)
    assert cluster.words == {}, "the workers stand still no longer"


def test_it_gives_up_when_no_checkpoint_comes(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.rooms["b"] = {"CPU": 1.0}
    monkeypatch.setattr(elastic, "SAVE_SECONDS", 0.0)
    cluster.decide(1)
    assert cluster.asks
    assert isinstance(cluster.decide(1), NoopDecision) and not cluster.asks


def test_a_node_that_will_be_taken_away_is_no_room(cluster: Cluster) -> None:
    cluster.rooms |= {"b": {"CPU": 1.0}, "c": {"CPU": 1.0}}
    cluster.leaving = {"c": 0}
    decision = cluster.policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision) and decision.num_workers == 2


def test_a_notice_is_answered_at_once_and_shortly_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(asked_module, "time", SimpleNamespace(time=lambda: now, monotonic=time.monotonic))
    asked = Asked("run", rank=1)  # no thread of its own
    assert asked.hear() is Wish.NONE
    asked.notice, asked.deadline = PreemptionInfo(1_060_000, {"b": [1]}), 1060.0
    assert asked.hear() is Wish.SAVE
    heard, asked.notice = asked.notice, PreemptionInfo(1_060_000, {"b": [1], "c": [2]})
    asked.obeyed(Wish.SAVE, Position(6))
    assert asked.hear() is Wish.SAVE, "the checkpoint was begun before this notice came"
    asked.notice = heard
    asked.hear()
    asked.obeyed(Wish.SAVE, Position(7))
    assert asked.hear() is Wish.NONE
    now = 1060.0 - LEAST_MARGIN_SECONDS
    assert asked.hear() is Wish.HOLD
    # Another node is to go, and sooner.
    asked.notice, asked.deadline = PreemptionInfo(1_059_000, {"a": [0], "b": [1]}), 1059.0
    assert asked.hear() is Wish.HOLD
    asked.close()


class Standing:
    """Rank 0 of a training of one worker, that the controller asks to stand still, in a thread of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        kept_here(monkeypatch)
        monkeypatch.setattr(asked_module, "LISTEN_SECONDS", 0.01)
        monkeypatch.setattr(asked_module, "HOLD_SECONDS", 5.0)
        self.asked = Asked(RUN, rank=0)
        asked_module.ask(RUN, Wish.HOLD)
        self.until(lambda: self.asked.hear() is Wish.HOLD)
        self.thread = threading.Thread(target=self.asked.obeyed, args=(Wish.HOLD, Position(7)), daemon=True)

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.01)

    def announce(self, seconds: float) -> None:
        announce(self.monkeypatch, PreemptionInfo(int((time.time() + seconds) * 1000), {"b": [1]}))


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standing]:
    standing = Standing(monkeypatch)
    yield standing
    standing.asked.close()


@pytest.mark.parametrize("during", ["the checkpoint", "the standstill"])
def test_a_notice_ends_a_standstill_for_growth_and_is_obeyed_instead(during: str, standing: Standing) -> None:
    asked = standing.asked
    if during == "the standstill":
        standing.thread.start()
        standing.until(lambda: held_at(RUN) == 7)
        standing.announce(600)
    else:
        standing.announce(600)
        standing.until(lambda: asked.notice is not None)
        standing.thread.start()
    standing.thread.join(30)
    assert not standing.thread.is_alive() and held_at(RUN) is None
    assert asked.hear() is Wish.SAVE, "as at any notice, though the controller's word is still there"
    asked.obeyed(Wish.SAVE, Position(8))
    assert asked.hear() is Wish.NONE, "it trains until shortly before the deadline"
    standing.announce(1)
    standing.until(lambda: asked.hear() is Wish.HOLD)


def test_after_a_notice_a_controller_that_has_not_heard_it_is_not_obeyed_and_a_driver_is(standing: Standing) -> None:
    asked = standing.asked
    asked_module.withdraw(RUN, Wish.HOLD)
    standing.announce(600)
    standing.until(lambda: asked.hear() is Wish.SAVE)
    asked.obeyed(Wish.SAVE, Position(7))
    asked_module.ask(RUN, Wish.HOLD)
    heard = set()
    for _ in range(20):
        time.sleep(0.01)
        heard.add(asked.hear())
    assert heard == {Wish.NONE}
    asked_module.ask(RUN, Wish.END)
    standing.until(lambda: asked.hear() is Wish.END)


def test_the_largest_wish_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked("run", rank=1)
    asked.notice = PreemptionInfo(None, {"b": [1]})
    asked.word = Wish.END
    assert asked.hear() is Wish.END
    asked.obeyed(Wish.END, Position(3))
    asked.close()
