"""When an elastic training changes its number of workers, and what a worker hears of a node that will be taken away."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.preemption import PreemptionInfo

from pipeline.training import asked as asked_module
from pipeline.training import elastic
from pipeline.training.asked import LEAST_MARGIN_SECONDS, Asked
from pipeline.training.checkpoint import Position
from pipeline.training.elastic import ElasticPolicy
from pipeline.training.wishes import Wish


class Cluster:
    """What the policy sees: rooms by node, nodes that will go, and the words between it and the workers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rooms, self.leaving, self.held = {"a": {"CPU": 1.0}}, dict[str, int](), None
        self.words: list[str] = []
        monkeypatch.setattr(elastic, "ask", lambda key, wish: self.words.append(wish.name))
        monkeypatch.setattr(elastic, "withdraw", lambda key, wish: self.words.append("withdrawn"))
        monkeypatch.setattr(elastic, "held_at", lambda key: self.held)
        monkeypatch.setattr(elastic.ray, "get", lambda value, timeout: value)
        monkeypatch.setattr(elastic.ray._private.state.state, "get_draining_nodes", lambda: self.leaving)
        monkeypatch.setattr(ElasticPolicy, "GET_RESERVED_RESOURCES_INTERVAL_S", 0)
        monkeypatch.setattr(ElasticPolicy, "_maybe_send_resource_request", lambda policy: None)
        remote = SimpleNamespace(remote=lambda requester, recompute: dict(self.rooms))
        coordinator = SimpleNamespace(get_reserved_resources=remote)
        monkeypatch.setattr(ElasticPolicy, "_autoscaling_coordinator", coordinator)
        scaling = ScalingConfig(num_workers=(1, 3), elastic_resize_monitor_interval_s=0)
        self.policy = ElasticPolicy(scaling, "run")

    def decide(self, running: int) -> Any:
        state = SimpleNamespace(start_time=float("-inf"), num_workers=running)
        return self.policy.make_decision_for_running_worker_group(state, None)  # type: ignore[arg-type]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_it_grows_only_after_a_checkpoint_at_which_the_workers_stand_still(cluster: Cluster) -> None:
    assert isinstance(cluster.decide(1), NoopDecision) and cluster.words == []
    cluster.rooms["b"] = {"CPU": 1.0}
    assert isinstance(cluster.decide(1), NoopDecision) and cluster.words == ["HOLD"]
    assert isinstance(cluster.decide(1), NoopDecision) and cluster.words == ["HOLD"]
    cluster.held = 17  # type: ignore[assignment]
    decision = cluster.decide(1)
    assert isinstance(decision, ResizeDecision) and decision.num_workers == 2
    assert cluster.words == ["HOLD"], "until they are ended they take no step that would be lost"
    cluster.policy.on_controller_start_worker_group(scaling_config=cluster.policy.scaling_config, num_workers=2)
    assert cluster.words == ["HOLD", "withdrawn"]


def test_it_goes_on_as_it_is_when_the_room_was_gone_again(cluster: Cluster) -> None:
    cluster.rooms["b"] = {"CPU": 1.0}
    cluster.decide(1)
    del cluster.rooms["b"]
    cluster.held = 17  # type: ignore[assignment]
    assert isinstance(cluster.decide(1), NoopDecision)
    assert cluster.words == ["HOLD", "withdrawn"], "the workers stand still no longer"


def test_it_gives_up_when_no_checkpoint_comes(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.rooms["b"] = {"CPU": 1.0}
    monkeypatch.setattr(elastic, "SAVE_SECONDS", 0.0)
    for _ in range(2):
        assert isinstance(cluster.decide(1), NoopDecision)
    assert cluster.words == ["HOLD", "withdrawn"]


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
    asked.obeyed(Wish.SAVE, Position(7))
    assert asked.hear() is Wish.NONE
    now = 1060.0 - LEAST_MARGIN_SECONDS
    assert asked.hear() is Wish.HOLD
    # Another node is to go, and sooner.
    asked.notice, asked.deadline = PreemptionInfo(1_059_000, {"a": [0], "b": [1]}), 1059.0
    assert asked.hear() is Wish.HOLD
    asked.close()


def test_the_largest_wish_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked("run", rank=1)
    asked.notice = PreemptionInfo(None, {"b": [1]})
    asked.word = Wish.END
    assert asked.hear() is Wish.END
    asked.obeyed(Wish.END, Position(3))
    asked.close()
