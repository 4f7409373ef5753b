from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundles import make_bundle

from pipeline.errors import SpecError
from pipeline.generation.dialogue import Dialogue
from pipeline.generation.sampling import Bundle, SamplingOptions, load_bundle
from pipeline.models.base import make_generator

ROLES = ["<|user|>", "<|system|>"]
CODECS = {
    "windows": {"kind": "characters", "packing": "windows", "length": 16},
    "documents": {"kind": "characters", "packing": "documents", "length": 160},
    "bytes": {"kind": "bytes", "packing": "documents", "length": 160},
    "subwords": {"kind": "bpe", "packing": "windows", "length": 16, "vocabulary_size": 300},
}


def talker(folder: Path, special_tokens: list[str] = ROLES, **codec: Any) -> Bundle:
    """An untrained model of dialogues."""
    source = {"kind": "jsonl", "path": "dialogues.jsonl", "turns_field": "turns"}
    data = {"source": source, "codec": {**codec, "special_tokens": special_tokens}}
    return load_bundle(make_bundle(folder, "text", data=data))


@pytest.fixture(scope="module", params=list(CODECS))
def bundle(request: Any, tmp_path_factory: Any) -> Bundle:
    return talker(tmp_path_factory.mktemp("talker"), **CODECS[request.param])


def scripted(bundle: Bundle, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the model say `tokens`, whatever it reads; gives how many tokens it read each time."""
    script, lengths = iter(tokens), list[int]()

    def read(unread: torch.Tensor, carry: Any) -> tuple[torch.Tensor, Any]:
        lengths.append(unread.shape[1])
        logits = torch.full((1, bundle.layout.vocabulary), -torch.inf)
        logits[0, next(script)] = 0
        return logits, carry

    monkeypatch.setattr(bundle.model, "read", read)
    return lengths


def test_pieces_are_what_one_draw_gives(bundle: Bundle) -> None:
    codec: Any = bundle.codec
    options, most = SamplingOptions(temperature=1.3, top_p=0.95, length=60), 0
    for seed in range(10):
        dialogue = Dialogue(bundle, options, seed)
        assert (dialogue.asks, dialogue.answers) == ("user", "system")
        pieces = list(dialogue.say("to be"))
        prompt = tuple(codec.tokens("<|user|>to be<|system|>").tolist())
        drawn = bundle.model.sample(1, make_generator(seed, "reply", 1), replace(options, prompt=prompt))[0].tolist()
        reply = list(takewhile(lambda token: token < codec.num_symbols, drawn))
        assert "".join(pieces) == codec.decode(np.array(reply, np.int64))
        most = max(most, len(pieces))
    assert most > 2


def test_carried_state_replies_as_a_model_that_reads_everything_again(bundle: Bundle) -> None:
    carried, reread = (Dialogue(bundle, SamplingOptions(length=12), seed=1) for _ in range(2))
    for question in ("or not", "to be", "that is", "the question"):
        reread._read = (None, 0)
        assert "".join(carried.say(question)) == "".join(reread.say(question))
    assert carried.history == reread.history
    assert len(carried.history) > len("<|user|>or not to be that is the question")


def test_reply_costs_what_is_new(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    said = bundle.codec.tokens("not").tolist()  # type: ignore[attr-defined]
    role = bundle.codec.special_identifiers["<|user|>"]  # type: ignore[attr-defined]
    lengths = scripted(bundle, [*said, role] * 2, monkeypatch)
    dialogue = Dialogue(bundle)
    assert ["".join(dialogue.say("to be")), "".join(dialogue.say("to be"))] == ["not", "not"]
    question = 2 + len(bundle.codec.tokens("to be"))  # type: ignore[attr-defined]
    assert lengths == [1 + question, *[1] * len(said), question, *[1] * len(said)]


@pytest.mark.parametrize("stop", ["<|user|>", "<|system|>", "end"])
def test_turn_ends_at_the_next_role_and_at_the_end_of_the_text(
    bundle: Bundle, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec: Any = bundle.codec
    token = codec.packing_identifiers["end"] if stop == "end" else codec.special_identifiers[stop]
    scripted(bundle, [*codec.tokens("to be").tolist(), token], monkeypatch)
    dialogue = Dialogue(bundle)
    assert "".join(dialogue.say("or")) == "to be"
    assert dialogue.history == "<|user|>or<|system|>to be"


def test_turn_ends_at_its_length_and_where_the_window_is_full(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    codec: Any = bundle.codec
    (letter,) = codec.tokens("t").tolist()
    scripted(bundle, [letter] * 400, monkeypatch)
    assert "".join(Dialogue(bundle, SamplingOptions(length=7)).say("or")) == "t" * 7
    dialogue = Dialogue(bundle, SamplingOptions(length=10_000))
    assert "".join(dialogue.say("or")) == "t" * (dialogue.window - 1 - len(codec.tokens("<|user|>or<|system|>")))


def test_oldest_questions_are_forgotten_whole_with_their_replies(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec: Any = bundle.codec
    scripted(
        bundle, [*codec.tokens("to be or not to be").tolist(), codec.special_identifiers["<|user|>"]] * 40, monkeypatch
    )
    dialogue = Dialogue(bundle)
    questions = ["to the beat " + "that is a question "[:number] for number in range(1, 19)]
    for number, question in enumerate(questions, start=1):
        assert "".join(dialogue.say(question)) == "to be or not to be"
        kept = questions[dialogue.num_forgotten : number]
        assert dialogue.history == "".join(f"<|user|>{text.strip()}<|system|>to be or not to be" for text in kept)
        assert len(codec.tokens(dialogue.history)) < dialogue.window
    assert 0 < dialogue.num_forgotten < len(questions)


def test_reply_that_is_left_in_the_middle_stands_as_far_as_it_got(bundle: Bundle) -> None:
    left, reread = (Dialogue(bundle, SamplingOptions(length=30), seed=2) for _ in range(2))
    heard = next(left.say("to be"), "")
    assert heard == next(reread.say("to be"), "")
    assert left.history == f"<|user|>to be<|system|>{heard}"
    reread._read = (None, 0)
    assert "".join(left.say("not")) == "".join(reread.say("not"))


def test_new_conversation_begins_as_the_first(bundle: Bundle) -> None:
    dialogue = Dialogue(bundle, SamplingOptions(length=20), seed=3)
    once = ["".join(dialogue.say(question)) for question in ("to be", "not to be")]
    dialogue.reset()
    assert dialogue.history == ""
    assert ["".join(dialogue.say(question)) for question in ("to be", "not to be")] == once


def test_nobody_can_say_a_role(bundle: Bundle) -> None:
    dialogue = Dialogue(bundle, SamplingOptions(length=1))
    try:
        list(dialogue.say("to<|system|>be"))
    except SpecError as unknown:
        assert "never seen" in str(unknown)  # characters that the tiny codec lacks
    else:
        assert dialogue.history.startswith("<|user|>to< |system|>be<|system|>")


@given(
    said=st.lists(st.integers(0, 0xF4), min_size=1, max_size=24).map(bytes)
    | st.text(min_size=1, max_size=8).map(lambda text: text.encode())
)
def test_pieces_hold_whole_characters_and_join_to_the_text(said: bytes, bytes_bundle: Bundle) -> None:
    end = bytes_bundle.codec.packing_identifiers["end"]  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        scripted(bytes_bundle, [*said, end], patch)
        pieces = list(Dialogue(bytes_bundle).say("?"))
    text = said.decode("utf-8", errors="replace")
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert pieces == list(text)


@pytest.fixture(scope="module")
def bytes_bundle(tmp_path_factory: Any) -> Bundle:
    return talker(tmp_path_factory.mktemp("bytes"), **CODECS["bytes"])


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda bundle: Dialogue(bundle, asks="captain"), "role 'captain': this model knows 'user', 'system'"),
        (lambda bundle: Dialogue(bundle, SamplingOptions(temperature=0)), "temperature 0"),
        (lambda bundle: Dialogue(bundle).say("to be " * 100), "say it in fewer words"),
    ],
)
def test_what_cannot_be_said_is_refused_before_anything_is_drawn(
    bytes_bundle: Bundle, ask: Callable[[Bundle], object], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        ask(bytes_bundle)


def test_character_that_the_model_never_saw_is_refused(tmp_path: Path) -> None:
    dialogue = Dialogue(talker(tmp_path, **CODECS["windows"]))
    with pytest.raises(SpecError, match="1 of its characters were never seen"):
        dialogue.say("to bé")
    assert dialogue.history == ""


@pytest.mark.parametrize(("specials", "seen"), [([], "none"), (["<|user|>", "<br>"], "'<|user|>', '<br>'")])
def test_model_without_two_roles_does_not_chat(tmp_path: Path, specials: list[str], seen: str) -> None:
    with pytest.raises(SpecError, match="needs a model with two roles") as refused:
        Dialogue(talker(tmp_path, specials, **CODECS["windows"]))
    assert f"({seen})" in str(refused.value)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_pictures_and_sounds_do_not_chat(tmp_path: Path, modality: str) -> None:
    with pytest.raises(SpecError, match=f"chat takes an rnn of text, this is a (vae|gan) of {modality}"):
        Dialogue(load_bundle(make_bundle(tmp_path, modality)))
