"""`atelier chat` as a person meets it, at a pseudo-terminal and in a pipe, with a model that learnt three replies."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bundles import tiny_manifest, tiny_spec

from pipeline.data.codec import make_codec
from pipeline.data.prepared import SplitArrays
from pipeline.data.sources.fields import render_turns
from pipeline.generation.sampling import save_bundle
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session

REPLIES = {"hello": "good day to you", "who is it": "naïve 漢字 😀", "count": "one two three " * 12}
PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained for seconds on dialogues of the three questions in every order."""
    source = {"kind": "jsonl", "path": "dialogues.jsonl", "turns_field": "turns"}
    codec = {"kind": "bytes", "length": 32, "special_tokens": ["<|user|>", "<|system|>"]}
    spec = tiny_spec(
        "text",
        name="talker",
        data={"source": source, "codec": codec},
        model={"family": {"kind": "rnn"}, "backbone": {"kind": "recurrent", "cell": "gru", "hidden_size": 64}},
        training={"steps": 400, "batch_size": 8, "lr": 1e-2, "clip_norm": 1.0, "checkpoint_every": 10_000},
    )
    text_codec: Any = make_codec(spec.data.codec)
    dialogues = [
        render_turns([turn for asked in order for turn in turns(asked)])
        for order in itertools.permutations(REPLIES)
        for _ in range(20)
    ]
    np.random.default_rng(0).shuffle(dialogues)
    stream = torch.from_numpy(np.concatenate([text_codec.encode(text) for text in dialogues]).astype(np.int64))
    windows = len(stream) // 32 * 32
    x = stream[:windows].view(-1, 32)
    split = SplitArrays(x, torch.full((len(x),), -1), [str(row) for row in range(len(x))], tail=stream[windows:])
    prepared: Any = SimpleNamespace(
        key="in-memory",
        layout=text_codec.layout(),
        manifest=SimpleNamespace(splits={"train": {"rows": len(x), "shards": [{"rows": len(x)}]}}),
        load_split=lambda *_, **__: split,
    )
    session = Session(spec, prepared)
    session.run(LocalHooks(spec))
    weights = session.stepper.model.state_dict()
    return save_bundle(tmp_path_factory.mktemp("talker"), spec, tiny_manifest(spec), weights)


def turns(question: str) -> list[dict[str, str]]:
    return [{"speaker": "user", "text": question}, {"speaker": "system", "text": REPLIES[question]}]


def command(talker: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "jobs", "chat", str(talker), "--temperature", "0.1", *options]


class Person:
    """Somebody at a terminal: types, and waits until something is seen."""

    def __init__(self, words: list[str]) -> None:
        self.terminal, end = pty.openpty()

        def take_the_terminal() -> None:
            os.setsid()
            fcntl.ioctl(end, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            words, stdin=end, stdout=end, stderr=end, preexec_fn=take_the_terminal, env={**os.environ, "TERM": "dumb"}
        )
        os.close(end)
        self.seen, self.looked_at = b"", 0

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def sees(self, text: str) -> None:
        """Wait for `text` after what was waited for before."""
        assert self.comes(text, PATIENCE_SECONDS), f"{text!r} does not come: {self.seen[self.looked_at :]!r}"

    def insists(self, keys: str, text: str) -> None:
        """Type again until `text` comes: Python hears only at the next key of a Ctrl-C between its prompt and its
        reading."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        self.type(keys)
        while not self.comes(text, 5):
            assert time.monotonic() < deadline, f"{text!r} does not come: {self.seen[self.looked_at :]!r}"
            self.type(keys)

    def comes(self, text: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (at := self.seen.find(text.encode(), self.looked_at)) < 0:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if select.select([self.terminal], [], [], left)[0]:
                try:
                    self.seen += os.read(self.terminal, 4096)
                except OSError:
                    raise AssertionError(f"it ended before {text!r}: {self.seen!r}") from None
        self.looked_at = at + len(text.encode())
        return True


@pytest.fixture
def person(talker: Path) -> Iterator[Person]:
    somebody = Person(command(talker))
    yield somebody
    somebody.process.kill()
    somebody.process.wait()
    os.close(somebody.terminal)


def test_conversation_at_a_terminal(person: Person) -> None:
    person.sees("/quit")
    person.sees("user> ")
    person.type("hello\r")
    person.sees("system> good day to you\r\n")
    person.sees("user> ")
    person.type("who is it\r")
    person.sees("system> naïve 漢字 😀\r\n")
    person.sees("user> ")
    # Ctrl-C ends the reply, and the program goes on.
    person.type("count\r")
    person.sees("system> one")
    person.type("\x03")
    person.sees("user> ")
    person.insists("\x03", "Ctrl-D ends")
    person.type("/reset\r")
    person.sees("a new conversation")
    person.sees("user> ")
    person.type("hello\r")
    person.sees("good day to you\r\n")
    person.sees("user> ")
    person.type("\x04")
    assert person.process.wait(PATIENCE_SECONDS) == 0


def test_pipe_gets_replies_alone_a_line_each(talker: Path) -> None:
    said = subprocess.run(command(talker), input="hello\n\nwho is it\n", capture_output=True, text=True, timeout=120)
    assert (said.returncode, said.stdout) == (0, "good day to you\nnaïve 漢字 😀\n"), said.stderr


def test_reader_that_goes_away_ends_it_quietly(talker: Path) -> None:
    process = subprocess.Popen(
        command(talker), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write("hello\n" * 50)
    process.stdin.close()
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE_SECONDS) == 0
    assert process.stderr
    assert "Traceback" not in process.stderr.read()


def test_what_is_said_at_once_is_answered_in_turn_until_a_mistake(talker: Path) -> None:
    words = command(talker, "--say", "who is it", "--say", "hello", "--say", "hello" * 100, "--say", "hello")
    said = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert (said.returncode, said.stdout) == (2, "naïve 漢字 😀\ngood day to you\n")
    assert "say it in fewer words" in said.stderr
    assert "Traceback" not in said.stderr


def test_stopped_from_outside_it_leaves(talker: Path) -> None:
    process = subprocess.Popen(command(talker), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    process.stdin.write("hello\n")
    process.stdin.flush()
    assert process.stdout.readline() == "good day to you\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_SECONDS) == 1
    process.stdin.close()
    process.stdout.close()
