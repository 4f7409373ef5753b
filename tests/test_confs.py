"""What a reader meets first: every conf loads and opens with its command, and the pages name only what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.__main__ import app
from pipeline.spec import load_spec

CONFS = sorted([*Path("conf").glob("*.yaml"), *Path("conf/benchmarks").rglob("*.yaml")])
PAGES = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]


@pytest.mark.parametrize("path", CONFS, ids=str)
def test_conf_loads_and_opens_with_its_purpose_and_command(path: Path) -> None:
    load_spec(str(path))
    opening = path.read_text().split("\nname:")[0]
    assert opening.startswith("# yaml-language-server")
    assert re.search(rf"(atelier train|row_\w+|{path.stem})", opening), "no command that runs it"
    if path.parent.name == "conf":
        assert re.search(r"\d+ s\b|[Mm]inute|seconds", opening), "no time that it takes"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_page_names_only_files_that_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"(?<![\w/])((?:conf|docs|tests|pipeline)/[\w/]+\.(?:yaml|md|py|png|json))", text):
        assert Path(name).is_file(), f"{page}: there is no {name}"
    for name in re.findall(r"tests\.benchmarks\.([a-z0-9_]+)(?!\w)", text):
        assert Path(f"tests/benchmarks/{name}.py").is_file(), f"{page}: there is no benchmark {name}"
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page}: the link to {target} leads nowhere"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_page_names_only_commands_that_exist(page: Path) -> None:
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups}
    for name in re.findall(r"(?:^|`|bin/)atelier ([a-z]+)", page.read_text(), re.MULTILINE):
        assert name in known, f"{page}: there is no command {name}"
