"""The champion moves by compare-and-set: only from the version that a challenger was compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundles import make_bundle

from pipeline.errors import ChampionMovedError, RegistryError
from pipeline.release.champion import find_champion, tag_version
from pipeline.release.registry import register
from pipeline.release.releases import promote
from pipeline.release.tracking import Tracking, connect, start_or_continue_run


@pytest.fixture
def three_versions(tracking: Tracking, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A model with the versions 1 (champion), 2 and 3."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    for seed in (1, 2, 3):
        run_id = start_or_continue_run(tracking, name, name, f"{name}-{seed}")
        register(tracking, run_id, make_bundle(tmp_path / str(seed), "image", seed=seed), name, {})
    return name


def champion(tracking: Tracking, name: str) -> str | None:
    found = find_champion(tracking.uri, name)
    return found.version if found else None


def test_promotion_moves_the_champion_once(tracking: Tracking, three_versions: str) -> None:
    promote(tracking.uri, three_versions, "2", "1")
    assert champion(tracking, three_versions) == "2"
    promote(tracking.uri, three_versions, "2", "1")
    assert champion(tracking, three_versions) == "2"


def test_a_champion_that_moved_meanwhile_stays(tracking: Tracking, three_versions: str) -> None:
    promote(tracking.uri, three_versions, "3", "1")
    with pytest.raises(ChampionMovedError, match="is version 3 now and was version 1"):
        promote(tracking.uri, three_versions, "2", "1")
    assert champion(tracking, three_versions) == "3"


def test_a_version_that_is_not_there_is_not_promoted(tracking: Tracking, three_versions: str) -> None:
    with pytest.raises(RegistryError, match="no version 9"):
        promote(tracking.uri, three_versions, "9", "1")
    assert champion(tracking, three_versions) == "1"


def test_a_champion_that_was_taken_away_is_not_the_one_compared_with(tracking: Tracking, three_versions: str) -> None:
    connect(tracking.uri).delete_registered_model_alias(three_versions, "champion")
    assert champion(tracking, three_versions) is None
    with pytest.raises(ChampionMovedError, match="is no version now"):
        promote(tracking.uri, three_versions, "2", "1")
    promote(tracking.uri, three_versions, "2", None)
    assert champion(tracking, three_versions) == "2"


def test_a_champion_says_where_it_comes_from(tracking: Tracking, three_versions: str) -> None:
    found = find_champion(tracking.uri, three_versions)
    assert found is not None and found.model_uri == f"models:/{three_versions}/1"
    assert found.prepared == "0123456789abcdef" and found.created_at > 1.7e9


def test_without_a_model_or_a_store_there_is_no_champion(tracking: Tracking, tmp_path: Path) -> None:
    assert find_champion(tracking.uri, "nobody") is None
    assert find_champion(f"sqlite:///{tmp_path}/none.db", "nobody") is None
    assert not list(tmp_path.iterdir())


def test_tags_of_a_version_are_set_and_replaced(tracking: Tracking, three_versions: str) -> None:
    tag_version(tracking.uri, three_versions, "2", {"decision": "held"})
    tag_version(tracking.uri, three_versions, "2", {"decision": "promoted"})
    assert connect(tracking.uri).get_model_version(three_versions, "2").tags["decision"] == "promoted"
