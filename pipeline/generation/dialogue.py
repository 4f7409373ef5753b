"""Dialogue: what a language model with role tokens replies, one piece of text after another.

Plain PyTorch and no terminal: `atelier chat`, a notebook or a server holds one `Dialogue` a conversation. The state
that reading leaves is carried, so that a reply costs its own tokens and those of the question, whatever came before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.data.sources.fields import without_roles
from pipeline.data.text import UNKNOWN, TextCodec
from pipeline.errors import SpecError
from pipeline.generation.sampling import Bundle, check_options
from pipeline.models.backbones import Carry
from pipeline.models.base import SamplingOptions, make_generator
from pipeline.models.decoding import draw
from pipeline.models.rnn import RecurrentLanguageModel

ROLE = re.compile(r"<\|(\w+)\|>")
LONGEST_REPLY = 200
"""Tokens of a reply where the options name no length."""
WINDOWS_CARRIED = 16
"""Examples of continuous text that a conversation may fill: no text ends there, but few in a training are longer."""
SHARE_FOR_THE_REPLY = 1 / 4
"""Of the window, so much is free when a reply begins."""


class Dialogue:
    """One conversation: who said what so far, and the state of the model that read it.

    A reply ends at the next role token, at the end of a text, after `options.length` tokens, or where the window is
    full. The window is the length of an example (for continuous text `WINDOWS_CARRIED` of them). Where history and
    question leave no room in it for a reply, the oldest questions are forgotten, each with its reply, and what is
    left is read anew. Replies are a function of the bundle, the options, the seed and what was said.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: SamplingOptions | None = None,
        seed: int = 0,
        asks: str | None = None,
        answers: str | None = None,
    ) -> None:
        """`asks` and `answers` are roles; by default `user`, else the first of the codec's, and the first other.

        Raises: SpecError on a model without two roles, a role that it does not have, and options out of range.
        """
        self.options = options or SamplingOptions()
        check_options(self.options)
        self.roles = roles_of(bundle)
        self.asks = self._role(asks or ("user" if "user" in self.roles else next(iter(self.roles))))
        self.answers = self._role(answers or next(role for role in self.roles if role != self.asks))
        assert isinstance(bundle.codec, TextCodec)
        assert isinstance(bundle.model, RecurrentLanguageModel)
        self.codec, self.model, self.device, self.seed = bundle.codec, bundle.model, bundle.device, seed
        self.window = bundle.layout.length * (WINDOWS_CARRIED if bundle.layout.continuous else 1)
        packing = self.codec.packing_identifiers
        # Continuous text has no begin token: there the end of one text is what the next begins with.
        self._start = [packing[name] for name in ("begin", "end") if name in packing][:1]
        self._stops = {*self.roles.values(), *packing.values()}
        self.reset()

    def reset(self) -> None:
        """Forget everything: the same questions get the same replies as in a new conversation."""
        self.num_replies = self.num_forgotten = 0
        self._tokens = list(self._start)
        self._questions: list[int] = []  # where in the tokens each question begins
        self._read: tuple[Carry | None, int] = (None, 0)  # the state, and how many tokens it is the state of

    @property
    def history(self) -> str:
        """What the model still knows of the conversation, with its role tokens."""
        return self.codec.decode(np.array(self._tokens[len(self._start) :], np.int64))

    def say(self, text: str) -> Iterator[str]:
        """The reply to `text`: pieces of text, drawn as they are taken, never half a character. A reply that is left
        in the middle stands in the history as far as it got.

        Raises, before anything is drawn: SpecError when `text` does not fit into the window, or has characters that
        the model never saw.
        """
        text = without_roles(text.strip())
        if unknown := self.codec.count_unknown(text):
            raise SpecError(f"{text[:40]!r}: {unknown} of its characters were never seen in training; leave them out")
        question = [self.roles[self.asks], *self.codec.tokens(text).tolist(), self.roles[self.answers]]
        room = self.window - round(self.window * SHARE_FOR_THE_REPLY) - len(self._start)
        if len(question) > room:
            raise SpecError(
                f"{text[:40]!r}…: {len(question)} tokens; of the model's window of {self.window} a question may take "
                f"{room}; say it in fewer words"
            )
        self._forget_all_but(room - len(question))
        self._questions.append(len(self._tokens))
        self._tokens += question
        self.num_replies += 1
        return self._reply(make_generator(self.seed, "reply", self.num_replies, device=self.device))

    def _role(self, role: str) -> str:
        if role not in self.roles:
            raise SpecError(f"role {role!r}: this model knows {', '.join(map(repr, self.roles))}")
        return role

    def _forget_all_but(self, room: int) -> None:
        """Keep of the history as many of the latest questions, with their replies, as `room` tokens hold."""
        ends = len(self._tokens)
        kept = [first for first in self._questions if ends - first <= room]
        if len(kept) == len(self._questions):
            return
        first = kept[0] if kept else ends
        self.num_forgotten += len(self._questions) - len(kept)
        self._tokens = [*self._start, *self._tokens[first:]]
        self._questions = [place - first + len(self._start) for place in kept]
        self._read = (None, 0)

    def _reply(self, generator: torch.Generator) -> Iterator[str]:
        """Draw until the turn is over. An interruption at any moment leaves the history and the state of it true."""
        first, text, given = len(self._tokens), "", 0
        longest = min(self.options.length or LONGEST_REPLY, self.window - first)
        for _ in range(longest):
            token = int(draw(self._logits(), generator, self.options))
            if token in self._stops:
                break
            self._tokens.append(token)
            text = self.codec.decode(np.array(self._tokens[first:], np.int64))
            # A character's bytes may be several tokens: what ends in the sign for broken ones may yet become whole.
            if text[given:] and not text.endswith(UNKNOWN):
                yield text[given:]
                given = len(text)
        if text[given:]:
            yield text[given:]

    @torch.inference_mode()
    def _logits(self) -> torch.Tensor:
        """Those of the next token, `[1, V]`, after reading what was not read yet."""
        carry, num_read = self._read
        unread = torch.tensor([self._tokens[num_read:]], device=self.device)
        logits, carry = self.model.read(unread, carry)
        self._read = (carry, len(self._tokens))
        return logits


def roles_of(bundle: Bundle) -> dict[str, int]:
    """The roles of a model of dialogues and their tokens, in the order of its spec.

    Raises: SpecError when it is not a language model of text, or has fewer than two roles.
    """
    family, layout = bundle.spec.model.family.kind, bundle.layout
    if layout.modality != "text" or family != "rnn":
        raise SpecError(
            f"{bundle.spec.name}: chat takes an rnn of text, this is a {family} of {layout.modality}; "
            "'atelier generate' draws from it"
        )
    if asked := bundle.spec.model.condition.on:
        raise SpecError(
            f"{bundle.spec.name}: it is asked for a {' and a '.join(asked)}, and such a model does not chat"
        )
    assert isinstance(bundle.codec, TextCodec)
    tokens = bundle.codec.special_identifiers
    roles = {match[1]: tokens[token] for token in tokens if (match := ROLE.fullmatch(token))}
    if len(roles) < 2:
        seen = ", ".join(map(repr, tokens)) or "none"
        raise SpecError(
            f"{bundle.spec.name}: chat needs a model with two roles, and of its special tokens ({seen}) "
            f"{len(roles)} are such; train on dialogues (data.source.turns_field) with "
            "data.codec.special_tokens ['<|user|>', '<|system|>'], as conf/dialogue.yaml does"
        )
    return roles
