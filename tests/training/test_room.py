"""Whether workers go on the nodes that there are, and what is said where they do not."""

from __future__ import annotations

import pytest

from pipeline.training.room import fits, lacking


@pytest.mark.parametrize(
    ("bundle", "resources", "count"),
    [
        ({"CPU": 2.0, "GPU": 0.0}, {"CPU": 5.0}, 2),
        ({"CPU": 2.0, "GPU": 1.0}, {"CPU": 64.0, "GPU": 3.0}, 3),
        ({"CPU": 2.0, "GPU": 1.0}, {"CPU": 64.0}, 0),
        ({"CPU": 0.1}, {"CPU": 0.3}, 3),
    ],
)
def test_bundles_are_counted_by_the_scarcest_resource(
    bundle: dict[str, float], resources: dict[str, float], count: int
) -> None:
    assert fits(bundle, resources) == count


@pytest.mark.parametrize(
    ("bundle", "number", "nodes", "said"),
    [
        (
            {"CPU": 2},
            3,
            [{"CPU": 0.0}, {"CPU": 4.0}],
            "3 workers of 2 CPU wanted, and the cluster has room for 2 (1 node of 0 CPU, 1 node of 4 CPU); training "
            "waits for more nodes, which an autoscaler may add; where there is none, lower training.num_workers or "
            "training.threads_per_worker",
        ),
        (
            {"CPU": 6},
            1,
            [{"CPU": 4.0}, {"CPU": 4.0}],
            "1 worker of 6 CPU wanted, and the cluster has room for 0 (2 nodes of 4 CPU); training waits",
        ),
        (
            {"CPU": 1, "GPU": 1},
            2,
            [{"CPU": 8.0, "GPU": 1.0}],
            "2 workers of 1 CPU and 1 GPU wanted, and the cluster has room for 1 (1 node of 8 CPU and 1 GPU); training "
            "waits for more nodes, which an autoscaler may add; where there is none, set training.use_gpu=auto",
        ),
        ({"CPU": 1}, 1, [], "1 worker of 1 CPU wanted, and the cluster has room for 0 (no nodes); training waits"),
    ],
)
def test_what_is_wanted_and_what_there_is_are_said(
    bundle: dict[str, float], number: int, nodes: list[dict[str, float]], said: str
) -> None:
    assert lacking(bundle, number, nodes).startswith(said)


def test_nothing_is_said_where_all_workers_fit() -> None:
    assert lacking({"CPU": 2}, 3, [{"CPU": 4.0}, {"CPU": 2.0}]) == ""
