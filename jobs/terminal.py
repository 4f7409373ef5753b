"""The process edge of every job: stdout carries one JSON line, stderr all else, and errors become exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from pipeline.errors import AtelierError
from pipeline.progress import WARNING

LINE_EVERY_SECONDS = 5.0


class Terminal:
    """Shows progress on stderr: a live bar a stage on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        self.bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            refresh_per_second=2,  # ten, which is the default, takes the training a thirtieth of a core
        )
        self.tasks: dict[str, Any] = {}
        self.last: dict[str, float] = {}

    def __enter__(self) -> Terminal:
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bars.stop()

    def __call__(self, stage: str, done: int, total: int | None, note: str) -> None:
        if stage == WARNING:
            self.show(f"{stage}  {note}")
            return
        if self.live:
            if stage not in self.tasks:
                for task in self.tasks.values():
                    self.bars.stop_task(task)
                self.tasks[stage] = self.bars.add_task(stage, total=total, note=note)
            self.bars.update(self.tasks[stage], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if stage not in self.last or now - self.last[stage] >= LINE_EVERY_SECONDS or (total and done >= total):
            if self.last.get(stage) == float("inf"):
                return
            self.last[stage] = float("inf") if total and done >= total else now
            amount = f" {done:,}/{total:,}" if total else (f" {done:,}" if done else "")
            self.console.print(f"{stage}{amount}  {note}", highlight=False, soft_wrap=True)

    def show(self, text: str) -> None:
        """Text for a person, as it is, on stderr."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def run_job(job: Callable[[Terminal], str], debug: bool = False) -> None:
    """Run `job`, print the JSON line it returns as the last of stdout, and leave with 0, 1 or 2.

    Everything else that writes to stdout (libraries, subprocesses) is sent to stderr.
    """

    def with_terminal() -> str:
        with Terminal() as terminal:
            return job(terminal)

    answers = _take_stdout()
    line, code = _at_the_edge(with_terminal, "the same command continues", debug)
    answers.write(line + "\n")
    answers.flush()
    raise typer.Exit(code)


def run_talk(talk: Callable[[TextIO], None], debug: bool = False) -> None:
    """Run `talk`, which writes to stdout what it says and nothing else, and leave with 0, 1 or 2.

    A reader that goes away (`| head -1`) ends it, and is no failure.
    """
    answers = _take_stdout()

    def until_nobody_reads() -> str:
        with contextlib.suppress(BrokenPipeError), answers:
            talk(answers)
        return ""

    raise typer.Exit(_at_the_edge(until_nobody_reads, "", debug)[1])


def _take_stdout() -> TextIO:
    """What was stdout; what anybody else writes there goes to stderr from now on."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _at_the_edge(work: Callable[[], str], after_stop: str, debug: bool) -> tuple[str, int]:
    """What `work` returns, or its failure as JSON, and the exit code."""
    # Ctrl-C and SIGTERM both leave through `finally`, so that Ray and MLflow are closed properly.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return work(), 0
    except AtelierError as error:
        _complain(f"{type(error).__name__}: {error}", debug)
        return json.dumps({"error": str(error), "kind": type(error).__name__}), error.exit_code
    except KeyboardInterrupt:
        _complain("; ".join(filter(None, ("stopped", after_stop))), debug=False)
        return json.dumps({"error": "stopped by the user", "kind": "KeyboardInterrupt"}), 1
    except Exception as error:  # the process edge: a defect of ours still ends in one line and a code
        _complain(f"unexpected {type(error).__name__}: {error}\nrun again with --debug for the traceback", debug)
        return json.dumps({"error": str(error), "kind": type(error).__name__}), 1


def _complain(text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(text, file=sys.stderr)
