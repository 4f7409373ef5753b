"""Releases are numbered and given once: what is begun is finished by whoever comes next, and can be taken back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_bundles import make_bundle

from pipeline.errors import ChampionMovedError, RegistryError, TrackingError
from pipeline.release.champion import find_champion, find_version
from pipeline.release.conclusion import SECTION, conclude
from pipeline.release.gate import Decision, Evidence, decide
from pipeline.release.registry import register
from pipeline.release.releases import Release, history, promote, rollback, settle
from pipeline.release.tracking import Tracking, connect, read_artifact, start_or_continue_run
from pipeline.spec import ReleaseSpec

PROMOTE = Decision("promote", "better", ())


@pytest.fixture
def name(tracking: Tracking, request: pytest.FixtureRequest) -> str:
    """A model with the versions 1 (champion), 2 and 3, whose runs say nothing."""
    return make_versions(tracking, "".join(c if c.isalnum() else "-" for c in request.node.name))


def make_versions(tracking: Tracking, name: str, count: int = 3) -> str:
    """Versions without files: all that the registry needs to move an alias."""
    client = connect(tracking.uri)
    client.create_registered_model(name)
    for number in range(count):
        run_id = start_or_continue_run(tracking, name, name, f"{name}-{number}")
        client.create_model_version(name, source=f"{tracking.artifact_location}/{name}", run_id=run_id)
    promote(tracking.uri, name, "1", None)
    return name


def champion(tracking: Tracking, name: str) -> str | None:
    found = find_champion(tracking.uri, name)
    return found.version if found else None


def moves(tracking: Tracking, name: str) -> list[tuple[str, str | None, str]]:
    finished, begun = history(tracking.uri, name)
    assert begun is None
    assert [release.number for release in finished] == list(range(1, len(finished) + 1))
    return [(release.kind, release.before, release.version) for release in finished]


def test_moves_are_numbered_and_kept_with_their_reasons(tracking: Tracking, name: str) -> None:
    second = promote(tracking.uri, name, "2", "1", "better by far")
    assert second is not None and (second.number, second.reason) == (2, "better by far")
    assert moves(tracking, name) == [("first", None, "1"), ("promotion", "1", "2")]
    tags = find_version(tracking.uri, name, "2").tags
    assert tags["atelier.decision"] == "promoted" and tags["atelier.decision.reason"] == "better by far"


def test_no_experiment_of_a_release_is_left_to_see(tracking: Tracking, name: str) -> None:
    promote(tracking.uri, name, "2", "1")
    assert all(not each.name.startswith("atelier-release/") for each in connect(tracking.uri).search_experiments())


def test_a_rollback_takes_back_the_last_promotion_and_then_the_one_before(tracking: Tracking, name: str) -> None:
    promote(tracking.uri, name, "2", "1")
    promote(tracking.uri, name, "3", "2")
    back = rollback(tracking.uri, name, "it repeats itself")
    assert (back.version, back.takes_back, champion(tracking, name)) == ("2", 3, "2")
    tags = find_version(tracking.uri, name, "3").tags
    assert (tags["atelier.decision"], tags["atelier.decision.reason"]) == ("rolled back", "it repeats itself")
    assert rollback(tracking.uri, name).version == "1"
    with pytest.raises(RegistryError, match="no promotion to take back; its champion is version 1, the first"):
        rollback(tracking.uri, name)
    promote(tracking.uri, name, "3", "1")
    assert rollback(tracking.uri, name).version == "1"
    assert [kind for kind, *_ in moves(tracking, name)] == [
        "first", "promotion", "promotion", "rollback", "rollback", "promotion", "rollback",
    ]  # fmt: skip


def test_a_champion_that_was_moved_by_hand_is_not_rolled_back(tracking: Tracking, name: str) -> None:
    promote(tracking.uri, name, "2", "1")
    connect(tracking.uri).set_registered_model_alias(name, "champion", "3")
    with pytest.raises(RegistryError, match="champion is version 3, and the last promotion was of version 2"):
        rollback(tracking.uri, name)
    assert champion(tracking, name) == "3"


def test_a_version_that_is_gone_is_not_rolled_back_to(tracking: Tracking, name: str) -> None:
    promote(tracking.uri, name, "2", "1")
    connect(tracking.uri).delete_model_version(name, "1")
    with pytest.raises(RegistryError, match="no version 1"):
        rollback(tracking.uri, name)
    assert champion(tracking, name) == "2"


# --- what was begun -------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here: nothing catches it."""


WRITES = (
    "create_experiment", "set_registered_model_alias", "set_model_version_tag", "set_registered_model_tag",
    "delete_experiment", "update_model_version", "log_artifact", "set_tag",
)  # fmt: skip


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`kill_at(n, after)`: the n-th write to MLflow from now on is the last, not made or (`after`) just made."""
    from mlflow import MlflowClient

    state: dict[str, Any] = {"left": None, "after": False}

    def wrapped(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if state["left"] is None:
                return real(*arguments, **options)
            state["left"] -= 1
            if state["left"] > 0:
                return real(*arguments, **options)
            if state["left"] == 0 and state["after"]:
                real(*arguments, **options)
            raise Killed

        return call

    for method in WRITES:
        monkeypatch.setattr(MlflowClient, method, wrapped(getattr(MlflowClient, method)))

    def arm(left: int | None, after: bool = False) -> None:
        state.update(left=left, after=after)

    yield arm


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_at_any_write_the_champion_is_the_old_or_the_new_one_and_the_next_call_finishes(
    tracking: Tracking, kill_at: Any, after: bool
) -> None:
    name = make_versions(tracking, f"killed-{after}", 40)
    seen, point, before = set(), 0, "1"
    while True:
        point, version = point + 1, str(point + 2)
        kill_at(point, after)
        try:
            conclude(tracking.uri, name, version, before, PROMOTE)
        except Killed:
            killed = True
        else:
            killed = False
        kill_at(None)
        now = champion(tracking, name)
        assert now in (before, version)
        if not killed:
            assert now == version
            break
        seen.add(now == version)
        concluded = conclude(tracking.uri, name, version, before, PROMOTE)
        assert concluded.decision == "promoted" and champion(tracking, name) == version
        tags = find_version(tracking.uri, name, version).tags
        assert tags["atelier.decision"] == "promoted" and tags["atelier.gate"] == "promote"
        before = version
    assert seen == {True, False} and point >= 10
    versions = [version for _, _, version in moves(tracking, name)]
    assert versions == [str(number) for number in range(1, point + 2)], "each was released once"


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_a_rollback_is_whole_or_not_there(tracking: Tracking, kill_at: Any, after: bool) -> None:
    name = make_versions(tracking, f"killed-rollback-{after}")
    for point in range(1, 20):
        promote(tracking.uri, name, "2", champion(tracking, name))
        kill_at(point, after)
        try:
            rollback(tracking.uri, name)
        except Killed:
            killed = True
        else:
            killed = False
        kill_at(None)
        assert champion(tracking, name) in ("1", "2")
        settle(tracking.uri, name)
        if not killed:
            break
        finished, begun = history(tracking.uri, name)
        assert begun is None
        assert champion(tracking, name) == finished[-1].version
        if champion(tracking, name) == "2":
            rollback(tracking.uri, name)
    assert point >= 5 and champion(tracking, name) == "1"


def claim_only(tracking: Tracking, kill_at: Any, name: str, version: str, before: str) -> None:
    """Begin a release and die before anything else."""
    kill_at(1, after=True)
    with pytest.raises(Killed):
        promote(tracking.uri, name, version, before)
    kill_at(None)


def test_a_release_of_a_version_that_was_deleted_is_given_up(tracking: Tracking, name: str, kill_at: Any) -> None:
    claim_only(tracking, kill_at, name, "2", "1")
    _, begun = history(tracking.uri, name)
    assert begun is not None and begun.version == "2" and champion(tracking, name) == "1"
    connect(tracking.uri).delete_model_version(name, "2")
    promote(tracking.uri, name, "3", "1")
    assert champion(tracking, name) == "3"
    finished, _ = history(tracking.uri, name)
    assert [release.abandoned for release in finished] == [False, True, False]
    assert rollback(tracking.uri, name).version == "1"


def test_who_comes_next_finishes_what_was_begun_and_then_sees_that_the_champion_moved(
    tracking: Tracking, name: str, kill_at: Any
) -> None:
    claim_only(tracking, kill_at, name, "2", "1")
    with pytest.raises(ChampionMovedError, match="is version 2 now and was version 1"):
        promote(tracking.uri, name, "3", "1")
    assert champion(tracking, name) == "2"


def test_a_process_that_stood_still_while_others_released_sets_their_champion_again(
    tracking: Tracking, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    real = MlflowClient.set_registered_model_alias
    waiting = True

    def stand_still(self: Any, model: str, alias: str, version: str) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            settle(tracking.uri, name)  # another process finishes the release of 2, and makes 3 champion
            promote(tracking.uri, name, "3", "2")
        real(self, model, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", stand_still)
    promote(tracking.uri, name, "2", "1")
    assert champion(tracking, name) == "3"
    assert moves(tracking, name)[1:] == [("promotion", "1", "2"), ("promotion", "2", "3")]


def test_a_number_that_another_process_takes_first_is_lost(
    tracking: Tracking, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read the champion and the last number; the other creates the next one just before."""
    from pipeline.release import releases

    real, first = releases._Log.claim, True

    def claim(self: Any, release: Release) -> bool:
        nonlocal first
        if first:
            first = False
            promote(tracking.uri, name, "3", "1")
        return real(self, release)

    monkeypatch.setattr(releases._Log, "claim", claim)
    with pytest.raises(ChampionMovedError, match="is version 3 now"):
        promote(tracking.uri, name, "2", "1")
    assert moves(tracking, name)[1:] == [("promotion", "1", "3")]


def test_an_answer_that_was_lost_does_not_lose_the_number(
    tracking: Tracking, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client repeats a request that a server carried out but whose answer never came."""
    from mlflow import MlflowClient

    real = MlflowClient.create_experiment

    def twice(self: Any, *arguments: Any, **options: Any) -> Any:
        real(self, *arguments, **options)
        return real(self, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "create_experiment", twice)
    promote(tracking.uri, name, "2", "1")
    assert champion(tracking, name) == "2" and len(moves(tracking, name)) == 2


def test_history_outlives_mlflows_own_cleaning(tracking: Tracking, name: str) -> None:
    from mlflow.entities import ViewType

    promote(tracking.uri, name, "2", "1")
    client = connect(tracking.uri)
    for each in client.search_experiments(view_type=ViewType.DELETED_ONLY):
        if each.name.startswith(f"atelier-release/{name}/"):
            client._tracking_client.store._hard_delete_experiment(each.experiment_id)
    promote(tracking.uri, name, "3", "2")
    assert [version for *_, version in moves(tracking, name)] == ["1", "2", "3"]
    assert rollback(tracking.uri, name).version == "2"


# --- decisions on record --------------------------------------------------------------------------------------


def test_a_decision_is_in_tags_description_card_and_run(tracking: Tracking, tmp_path: Path) -> None:
    name = "on-record"
    for seed in (1, 2):
        run_id = start_or_continue_run(tracking, name, name, f"{name}-{seed}")
        register(tracking, run_id, make_bundle(tmp_path / str(seed), "image", seed=seed), name, {})
    limits = ReleaseSpec.model_validate({"limits": {"frechet": {"at_most": 1}}})
    decision = decide(limits, Evidence(findings=("copies",)), None)
    for _ in range(2):  # twice, and the section is there once
        concluded = conclude(tracking.uri, name, "2", "1", decision, note="a note")
    assert concluded.decision == "rejected" and concluded.reason.endswith("; a note")
    version = find_version(tracking.uri, name, "2")
    assert version.tags["atelier.decision"] == "rejected" and version.tags["atelier.gate"] == "reject"
    card = (read_artifact(tracking.uri, run_id, "card.md") or b"").decode()
    for text in (version.description, card):
        assert text.startswith("# tiny-image") and text.count(SECTION) == 1
        assert "**rejected**, compared with version 1: copies: it gives back training examples" in text
        assert "| limit | `frechet` | at most 1 |" in text
    gates = {item.path for item in connect(tracking.uri).list_artifacts(run_id, "gate")}
    assert len(gates) == 2
    assert champion(tracking, name) == "1"


def test_a_first_version_within_its_limits_is_champion_and_another_is_not(tracking: Tracking, tmp_path: Path) -> None:
    name = "first-limits"
    outcomes = []
    for seed, findings in ((1, ("copies",)), (2, ()), (3, ())):
        run_id = start_or_continue_run(tracking, name, name, f"{name}-{seed}")
        decision = decide(ReleaseSpec(), Evidence(findings=findings), None)
        for _ in range(2):  # a run that was broken off registers again
            register(tracking, run_id, make_bundle(tmp_path / str(seed), "image", seed=seed), name, {}, decision)
        outcomes.append(
            (champion(tracking, name), find_version(tracking.uri, name, str(seed)).tags.get("atelier.decision"))
        )
    assert outcomes == [(None, "rejected"), ("2", "first"), ("2", None)]
    assert find_version(tracking.uri, name, "1").findings == ("copies",)


def test_a_store_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrackingError):
        promote(f"sqlite:///{tmp_path}/none.db", "nobody", "1", None)
    settle(f"sqlite:///{tmp_path}/none.db", "nobody")
    assert not list(tmp_path.iterdir())
