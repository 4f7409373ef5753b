"""The page tells where the time of a training step went: the whole of it, in the mean and at last."""

from __future__ import annotations

import pytest
from report_pages import page

from pipeline.report.step_time import NAMES, step_time_section
from pipeline.training.timing import PARTS

HISTORY = [
    {"step": 10, "time/forward_seconds": 0.002, "time/backward_seconds": 0.004, "time/validation_seconds": 0.0},
    {"step": 12, "validation/nll_nats": 3.0},
    {"step": 40, "time/forward_seconds": 0.004, "time/backward_seconds": 0.008, "time/validation_seconds": 0.002},
]
SPEED = {"step": 40, "train/peak_memory_mib": 512.0, "train/model_tflops_per_second": 0.25, "train/mfu": 0.375}


def test_every_part_has_a_name() -> None:
    assert tuple(NAMES) == PARTS


def test_means_weigh_steps_and_shares_add_up() -> None:
    section = step_time_section([*HISTORY, SPEED])
    assert section is not None
    assert [(row["name"], row["mean"], row["last"]) for row in section["rows"]] == [
        ("backward", "7 ms", "8 ms"),
        ("forward", "3.500 ms", "4 ms"),
        ("validation", "1.500 ms", "2 ms"),
    ]
    assert sum(row["share"] for row in section["rows"]) == pytest.approx(100)
    assert (section["whole"], section["last"]) == ("12 ms", "14 ms")
    assert section["facts"] == [
        ("Peak memory of a worker", "512 MiB"),
        ("Model operations", "250 GFLOP/s"),
        ("Of the device's peak (MFU)", "37.5%"),
    ]


def test_a_history_from_before_there_were_such_measures_has_no_section() -> None:
    assert step_time_section([{"step": 1, "train/loss": 2.0}]) is None
    assert "A training step" not in page()


def test_the_page_shows_it_with_the_stages() -> None:
    html = page(history=[*HISTORY, SPEED])
    time = html[html.index('<section id="time">') :]
    assert time.index("Where the") < time.index("A training step") < time.index("backward") < time.index("512 MiB")
