from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_bundles import make_bundle

from pipeline.errors import SpecError
from pipeline.generation.chat import talk
from pipeline.generation.dialogue import Dialogue
from pipeline.generation.sampling import SamplingOptions, load_bundle


@pytest.fixture
def dialogue(tmp_path: Path) -> Dialogue:
    codec = {"kind": "bytes", "packing": "documents", "length": 100, "special_tokens": ["<|user|>", "<|system|>"]}
    source = {"kind": "jsonl", "path": "dialogues.jsonl", "turns_field": "turns"}
    bundle = load_bundle(make_bundle(tmp_path, "text", data={"source": source, "codec": codec}))
    return Dialogue(bundle, SamplingOptions(length=10))


def typed(*lines: str | type[BaseException]) -> Callable[[], str]:
    """Lines as somebody types them; an exception is what a key like Ctrl-C makes."""
    coming = iter((*lines, EOFError))

    def next_line() -> str:
        line = next(coming)
        if isinstance(line, str):
            return line
        raise line

    return next_line


def speak(dialogue: Dialogue, replies: list[str | type[BaseException]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the dialogue give `replies`, piece by piece, an exception at its place; gives what was asked."""
    asked: list[str] = []

    def say(text: str) -> Iterator[str]:
        asked.append(text)

        def pieces() -> Iterator[str]:
            for piece in replies:
                if not isinstance(piece, str):
                    raise piece
                yield piece

        return pieces()

    monkeypatch.setattr(dialogue, "say", say)
    return asked


def held(dialogue: Dialogue, next_line: Callable[[], str], interactive: bool = True) -> tuple[str, list[str]]:
    out, asides = io.StringIO(), list[str]()
    talk(dialogue, next_line, out, asides.append, interactive)
    return out.getvalue(), asides


def test_each_line_gets_its_reply_and_empty_ones_none(dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = speak(dialogue, ["wel", "come"], monkeypatch)
    out, asides = held(dialogue, typed("hello\n", "\n", "  you there "), interactive=False)
    assert (out, asked, asides) == ("welcome\nwelcome\n", ["hello", "you there"], [])


def test_quit_ends_and_reset_forgets(dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    _, asides = held(dialogue, typed("hello", "/reset", "/quit", "never read"))
    assert dialogue.history == ""
    assert asides == ["a new conversation"]
    asked = speak(dialogue, [], monkeypatch)
    _, asides = held(dialogue, typed("/resset"))
    assert "/resset: no such command; /reset" in asides[0]
    assert not asked


def test_interrupt_ends_the_reply_and_not_the_conversation(dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = speak(dialogue, ["well", KeyboardInterrupt], monkeypatch)
    out, asides = held(dialogue, typed("hello", KeyboardInterrupt, "hello"))
    assert out == "system> well\nsystem> well\n"
    assert asked == ["hello", "hello"]
    assert "Ctrl-D ends" in asides[0]
    for lines in (("hello",), (KeyboardInterrupt,)):
        with pytest.raises(KeyboardInterrupt):
            held(dialogue, typed(*lines), interactive=False)


def test_question_that_cannot_be_read_is_said_at_a_terminal_and_ends_a_script(dialogue: Dialogue) -> None:
    out, (aside,) = held(dialogue, typed("long " * 40))
    assert "say it in fewer words" in aside
    assert out == ""
    with pytest.raises(SpecError, match="say it in fewer words"):
        held(dialogue, typed("long " * 40), interactive=False)


def test_what_is_forgotten_is_said_once(dialogue: Dialogue) -> None:
    _, asides = held(dialogue, typed(*["what is this"] * 20), interactive=False)
    assert asides == ["the model reads 100 tokens at most: the oldest of what was said is forgotten"]
    assert dialogue.num_forgotten > 1
