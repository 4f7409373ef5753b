"""The doctor's judgement, from facts to checks, and what it looks at in one process; no Ray is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.operations import probe
from pipeline.operations.checks import (
    GIBIBYTE,
    NodeGroup,
    Place,
    check_disks,
    check_mlflow,
    check_resources,
    check_shared_memory,
    check_source,
    check_storage,
    check_versions,
    without_password,
)

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "atelier": "0.1.0 (sources 12345678)"}


def place(name: str, **facts: Any) -> Place:
    """A healthy node of 4 processors and 1 GPU."""
    resources = {"CPU": 4.0, "GPU": 1.0}
    given = {
        "host": name,
        "versions": VERSIONS,
        "processors": 4,
        "resources": resources,
        "free_resources": facts.get("resources", resources),
        "disk_total": 100 * GIBIBYTE,
        "disk_free": 50 * GIBIBYTE,
        "shm_total": 8 * GIBIBYTE,
        "object_store": 4 * GIBIBYTE,
    }
    return Place(name=name, **{**given, **facts})


def driver(**facts: Any) -> Place:
    return place("driver", is_driver=True, resources={}, free_resources={}, object_store=0, **facts)


# --- versions -------------------------------------------------------------------------------------------------


def test_the_same_versions_everywhere_are_well() -> None:
    check = check_versions([driver(), place("a"), place("b")])
    assert check.status == "ok" and not check.do
    assert "ray 2.60.0" in check.seen


def test_a_differing_version_names_the_package_both_versions_and_the_nodes() -> None:
    old = place("b", versions={**VERSIONS, "torch": "2.11.0", "atelier": "0.1.0 (sources ffffffff)"})
    check = check_versions([driver(), place("a"), old])
    assert check.status == "fail"
    assert "torch: 2.13.0 on driver, a; 2.11.0 on b" in check.seen
    assert "sources ffffffff) on b" in check.seen
    assert "ray" not in check.seen
    assert "constraints.txt" in check.do


def test_a_package_that_is_nowhere_fails_though_all_agree() -> None:
    without = {**VERSIONS, "mlflow": "not there"}
    check = check_versions([driver(versions=without), place("a", versions=without)])
    assert check.status == "fail" and "mlflow" in check.seen


def test_a_node_that_does_not_answer_fails() -> None:
    check = check_versions([driver(), place("a", silent="no answer in 60 s", versions={})])
    assert check.status == "fail"
    assert "a: no answer in 60 s" in check.seen


# --- storage --------------------------------------------------------------------------------------------------


def marked(**seen: tuple[str, ...]) -> list[Place]:
    return [place(name, siblings=siblings) for name, siblings in seen.items()]


def test_a_shared_storage_is_well() -> None:
    everyone = ("a", "b", "c")
    assert check_storage("s3://bucket/x", marked(a=everyone, b=everyone, c=everyone)).status == "ok"


def test_a_storage_that_is_local_to_each_machine_is_seen() -> None:
    check = check_storage("/data/storage", marked(a=("a", "b"), b=("a", "b"), c=("c",)))
    assert check.status == "fail"
    assert "a does not see what c wrote" in check.seen
    assert "s3://" in check.do


def test_a_storage_that_one_node_cannot_write_names_it_and_the_reason() -> None:
    places = [*marked(a=("a",)), place("b", storage_error="Permission denied")]
    check = check_storage("/data/storage", places)
    assert check.status == "fail" and check.seen == "b: Permission denied"


def test_a_silent_node_is_not_told_twice() -> None:
    places = [*marked(a=("a",)), place("b", silent="no answer in 60 s")]
    assert check_storage("/data/storage", places).status == "ok"


# --- MLflow ---------------------------------------------------------------------------------------------------


def test_a_server_that_answers_nobody_says_how_to_start_one() -> None:
    check = check_mlflow("http://tracking:5000", "MLflow does not answer", True, [driver()])
    assert check.status == "fail" and "mlflow server" in check.do and "MLFLOW_TRACKING_URI" in check.do


def test_a_server_that_one_node_does_not_reach_names_it() -> None:
    places = [driver(), place("a"), place("b", mlflow_error="Connection refused")]
    check = check_mlflow("http://localhost:5000", None, True, places)
    assert check.status == "fail" and "b: Connection refused" in check.seen


@pytest.mark.parametrize(("hosts", "status"), [(("m", "m"), "ok"), (("m", "n"), "warn")])
def test_an_sqlite_file_is_for_one_machine(hosts: tuple[str, str], status: str) -> None:
    places = [driver(host=hosts[0]), place("a", host=hosts[0]), place("b", host=hosts[1])]
    assert check_mlflow("sqlite:////data/mlflow.db", None, True, places).status == status


def test_a_store_that_is_not_there_yet_is_well() -> None:
    assert "first run" in check_mlflow("sqlite:////data/mlflow.db", None, False, [driver(host="a"), place("a")]).seen


def test_no_password_is_shown() -> None:
    check = check_mlflow("postgresql://me:hidden@db/mlflow", "postgresql://me:hidden@db refused", True, [])
    assert "hidden" not in check.seen
    assert (
        without_password("s3://AK:hidden@bucket/x?secret_key=hidden&region=eu")
        == "s3://…@bucket/x?secret_key=…&region=eu"
    )


# --- resources ------------------------------------------------------------------------------------------------

NODES = [driver(), place("a"), place("b")]


def test_workers_that_fit_are_well() -> None:
    assert check_resources({"CPU": 4.0, "GPU": 1.0}, 2, NODES).status == "ok"


def test_a_worker_larger_than_any_node_fails_though_the_sum_would_do() -> None:
    check = check_resources({"CPU": 6.0}, 1, NODES)
    assert check.status == "fail"
    assert "only 0 fit (a has 4 CPU and 1 GPU, b has 4 CPU and 1 GPU)" in check.seen
    assert "threads_per_worker" in check.do


def test_too_few_gpus_say_how_to_do_without() -> None:
    check = check_resources({"CPU": 1.0, "GPU": 1.0}, 3, NODES)
    assert check.status == "fail" and "use_gpu=auto" in check.do


def test_nodes_that_an_autoscaler_may_add_make_it_a_warning() -> None:
    groups = [NodeGroup("cpu", 9, {"CPU": 8.0}), NodeGroup("gpu_spot", 1, {"CPU": 4.0, "GPU": 1.0})]
    bundle = {"CPU": 1.0, "GPU": 1.0}
    check = check_resources(bundle, 3, NODES, groups)
    assert check.status == "warn" and "gpu_spot" in check.seen and "cpu" not in check.seen.split("nodes of")[1]
    assert check_resources(bundle, 4, NODES, groups).status == "fail"


def test_a_cluster_that_is_busy_is_a_warning() -> None:
    busy = [driver(), place("a", free_resources={"CPU": 1.0})]
    check = check_resources({"CPU": 2.0}, 2, busy)
    assert check.status == "warn" and "only 0 beside what runs now" in check.seen


def test_more_threads_than_processors_are_a_warning() -> None:
    told = place("a", resources={"CPU": 4.0}, processors=2)
    check = check_resources({"CPU": 1.0}, 4, [told])
    assert check.status == "warn" and "4 threads on 2 processors" in check.seen


def test_nodes_of_one_machine_share_its_processors() -> None:
    nodes = [place(name, host="one", processors=4, resources={"CPU": 4.0}) for name in "ab"]
    assert check_resources({"CPU": 1.0}, 6, nodes).status == "warn"


# --- disks, memory, data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "free", "status"), [(100, 50, "ok"), (20, 4, "warn"), (1000, 40, "fail")])
def test_a_disk_is_judged_by_what_ray_does_on_it(total: int, free: int, status: str) -> None:
    node = place("a", disk_total=total * GIBIBYTE, disk_free=free * GIBIBYTE)
    check = check_disks([place("b"), node])
    assert check.status == status
    assert status == "ok" or ("a: " in check.seen and "b: " not in check.seen)


def test_the_worst_disk_decides() -> None:
    full, small = place("a", disk_free=GIBIBYTE), place("b", disk_total=20 * GIBIBYTE, disk_free=4 * GIBIBYTE)
    assert check_disks([full, small]).status == check_disks([small, full]).status == "fail"


def test_an_object_store_larger_than_shared_memory_is_a_warning() -> None:
    check = check_shared_memory([driver(shm_total=0), place("a"), place("b", shm_total=GIBIBYTE // 16)])
    assert check.status == "warn"
    assert check.seen == "b: /dev/shm has 0.1 GiB, the object store 4.0 GiB"
    assert "--shm-size" in check.do


def test_a_corpus_that_one_node_does_not_see_names_it() -> None:
    places = [driver(), place("a"), place("b", source_error="/data: there is no such file or folder")]
    check = check_source("/data", None, places)
    assert check.status == "fail" and check.seen.startswith("b: ") and "mount" in check.do
    assert check_source("/data", None, places[:2]).status == "ok"
    assert check_source("/data", "/data: no file ends with .png", places).status == "fail"


# --- what is looked at ----------------------------------------------------------------------------------------


def test_the_probe_sees_this_machine(tmp_path: Path) -> None:
    seen = replace(Place("here", ""), **probe.look(str(tmp_path), str(tmp_path / "no")))
    assert seen.silent is None and seen.source_error and seen.disk_free > 0 and seen.processors >= 1
    assert seen.versions["ray"].count(".") == 2
    assert seen.versions["atelier"].startswith("0.1.0 (sources ")
    assert probe.look(str(tmp_path), str(tmp_path))["source_error"] is None


def test_the_probe_sees_what_lies_behind_a_uri(tmp_path: Path) -> None:
    assert probe.unseen(f"file://{tmp_path}") is None
    assert (
        probe.unseen(f"file://{tmp_path}/gone?key=secret") == f"file://{tmp_path}/gone: there is no such file or folder"
    )
    assert "nowhere://" in str(probe.unseen("nowhere://at/all"))


def test_a_changed_source_file_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline

    (tmp_path / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(pipeline, "__file__", str(tmp_path / "__init__.py"))
    before = probe.installed()["atelier"]
    (tmp_path / "a.py").write_text("x = 2\n")
    assert probe.installed()["atelier"] != before


def test_marks_are_written_read_and_removed_with_what_was_made_for_them(tmp_path: Path) -> None:
    uri = str(tmp_path / "storage")
    assert probe.write_mark(uri, ".doctor-1", "a") == {"storage_error": None, "made": True}
    assert probe.write_mark(uri, ".doctor-1", "b") == {"storage_error": None, "made": False}
    assert probe.read_marks(uri, ".doctor-1") == {"siblings": ("a", "b")}
    probe.remove_marks(uri, ".doctor-1", made=True)
    assert list(tmp_path.iterdir()) == []


def test_removing_marks_leaves_a_storage_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert not probe.write_mark(str(tmp_path), ".doctor-1", "a")["made"]
    probe.remove_marks(str(tmp_path), ".doctor-1", made=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("uri", ["/proc/no", "s4://bucket/x"])
def test_a_storage_that_cannot_be_written_is_a_reason_and_no_exception(uri: str) -> None:
    assert uri.split("//")[-1].split("/")[0] in probe.write_mark(uri, ".doctor-1", "a")["storage_error"]
    assert probe.read_marks(uri, ".doctor-1")["siblings"] == ()


def test_an_mlflow_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert probe.reach_mlflow(f"sqlite:///{tmp_path}/a/mlflow.db") == {"mlflow_error": None}
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert "not writable" in probe.reach_mlflow(f"sqlite:///{tmp_path}/file/mlflow.db")["mlflow_error"]
