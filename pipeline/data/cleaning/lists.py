"""The lists that cleaning goes by: phrases that no text may have, and records that no prepared set may hold.

Read once by the driver, from a path or a URI; they travel to Ray Data's workers inside the cleaner. Their digests go
into the prepared set's key, so that a list that changed makes another set.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.data.cleaning.words import UNSPACED, words_of
from pipeline.data.records import content_id
from pipeline.errors import SpecError
from pipeline.spec import CleaningSpec
from pipeline.storage import open_store

_ID_DIGITS = 16
_HEX = re.compile(r"[0-9a-fA-F]{8,}")
_POSITION = re.compile(r":[0-9]+$")
_UNSPACED = re.compile(f"[{UNSPACED}]")


@dataclass(frozen=True)
class OptOut:
    """Records that people asked to leave out: `ids`, the first 16 hexadecimal digits of their sha256, and `origins`.

    An id is looked for in the record as the corpus has it (`has`, by the driver of the preparation, before decoding)
    and, for texts, in what cleaning made of it (`has_text`, by the cleaner): whoever opts out by the hash of a text in
    a prepared set is found too. Masking gives a text another id, so the id of the text as it is in the corpus stays
    the surest.
    """

    ids: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.ids or self.origins)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the list's normal form: cut ids and origins, sorted, one a line."""
        return _digest([*sorted(self.ids), *(f"./{origin}" for origin in sorted(self.origins))])

    def has(self, record_id: str, sha256_hex: str, origin: str) -> bool:
        """Whether a record is on the list: by its id, by the sha256 of its content (or ""), by its origin, by the file
        of its origin (`notes.txt` is that of `notes.txt:17`, `a.tar` that of `a.tar#x`), or by a listed folder above it
        (`letters/`)."""
        if record_id.lower() in self.ids or sha256_hex[:_ID_DIGITS].lower() in self.ids:
            return True
        return bool(self.origins) and any(place in self.origins for place in _places(origin))

    def has_text(self, text: str) -> bool:
        """Whether a text is on the list by its content."""
        return bool(self.ids) and content_id(text) in self.ids


def _places(origin: str) -> Iterator[str]:
    """The origin itself, the files that it lies in, and the folders above it, each of these with a `/` at its end."""
    yield origin
    yield _POSITION.sub("", origin)
    yield from (origin[: match.start()] for match in re.finditer("#", origin))
    yield from (origin[: match.end()] for match in re.finditer("/", origin))


@dataclass(frozen=True)
class BlockList:
    """Phrases, in Unicode's composed form, case-folded and with single spaces; a text with one of them is dropped.

    A phrase is found as whole words, with any white space between them, whatever the case; at an end that is Chinese,
    Japanese, Thai or of another script without spaces it need not be a whole word.
    """

    phrases: frozenset[str] = frozenset()

    @cached_property
    def digest(self) -> str:
        """The sha256 of the phrases, sorted, one a line."""
        return _digest(sorted(self.phrases))

    @cached_property
    def _by_word(self) -> dict[str, list[tuple[frozenset[str], str]]]:
        """Each phrase's words and the phrase, under its longest word ("" where it has none)."""
        index = defaultdict(list)
        for phrase in sorted(self.phrases):
            words = frozenset(words_of(phrase))
            index[max(words, key=lambda word: (len(word), word), default="")].append((words, phrase))
        return dict(index)

    def find(self, text: str) -> str | None:
        """A phrase that is in `text`, or None. A set of the text's words finds the few phrases to look for, so that the
        time hardly depends on how many there are."""
        if not self.phrases:
            return None
        folded = text.casefold()
        words = {*words_of(folded), ""}
        for word in sorted(words & self._by_word.keys()):
            for needed, phrase in self._by_word[word]:
                if needed <= words and re.search(_pattern(phrase), folded):
                    return phrase
        return None


def _pattern(phrase: str) -> str:
    """Whole words, but for the ends that are in a script without spaces."""
    before = "" if _UNSPACED.match(phrase[0]) else r"(?<!\w)"
    after = "" if _UNSPACED.match(phrase[-1]) else r"(?!\w)"
    return before + r"\s+".join(map(re.escape, phrase.split(" "))) + after


@dataclass(frozen=True)
class Lists:
    """The lists that a `CleaningSpec` names; empty where it names none."""

    opt_out: OptOut = OptOut()
    block_list: BlockList = BlockList()

    @property
    def digests(self) -> dict[str, str]:
        """What the prepared set's key takes of the lists' contents."""
        return {"opt_out": self.opt_out.digest, "block_list": self.block_list.digest}


def read_lists(spec: CleaningSpec) -> Lists:
    """The lists that `spec` names. Raises: SpecError, StorageError."""
    return Lists(
        OptOut() if spec.opt_out is None else read_opt_out(spec.opt_out),
        BlockList() if spec.text.block_list is None else read_block_list(spec.text.block_list),
    )


def read_opt_out(uri: str) -> OptOut:
    """The opt-out list at a path or URI: on each line a record's id (16 hexadecimal digits), a sha256 (64), or an
    origin; `#` begins a comment at the start of a line or after a space. `./` before a name says that it is an origin.

    Raises: SpecError when there is no such file, or naming each line that is none of these; StorageError.
    """
    ids: set[str] = set()
    origins: set[str] = set()
    wrong: list[str] = []
    for number, line in enumerate(_read_lines(uri, "data.cleaning.opt_out"), 1):
        entry = re.sub(r"(?:^|\s)#.*", "", line).strip()
        mistake = _mistake(entry)
        if mistake:
            wrong.append(f"\n  line {number}: {entry[:80]!r}: {mistake}")
        elif _HEX.fullmatch(entry):
            ids.add(entry[:_ID_DIGITS].lower())
        elif entry:
            origins.add(entry.removeprefix("./"))
    if wrong:
        more = f"\n  and {len(wrong) - 10:,} more" if len(wrong) > 10 else ""
        lines = "1 line is" if len(wrong) == 1 else f"{len(wrong):,} lines are"
        raise SpecError(f"{uri}: {lines} no record id, sha256 or origin{''.join(wrong[:10])}{more}")
    return OptOut(frozenset(ids), frozenset(origins))


def _mistake(entry: str) -> str | None:
    if _HEX.fullmatch(entry) and len(entry) not in (_ID_DIGITS, 64):
        name = f"a file of that name is written ./{entry}"
        return f"{len(entry)} hexadecimal digits; an id has {_ID_DIGITS} and a sha256 has 64 ({name})"
    if "://" in entry or entry.startswith(("/", "~", "../")) or "\\" in entry:
        return "an origin is a path within the corpus, with forward slashes, as the prepared set shows it"
    if not entry.isprintable():
        return "it has characters that cannot be printed"
    return None


def read_block_list(uri: str) -> BlockList:
    """The block list at a path or URI: a phrase a line, none of them a comment.

    Raises: SpecError when there is no such file, or no phrase in it; StorageError.
    """
    lines = _read_lines(uri, "data.cleaning.text.block_list")
    phrases = frozenset(
        " ".join(unicodedata.normalize("NFC", line).casefold().split()) for line in lines if line.strip()
    )
    if not phrases:
        raise SpecError(
            f"{uri}: the block list has no phrase; write one a line, or remove data.cleaning.text.block_list"
        )
    return BlockList(phrases)


def _read_lines(uri: str, key: str) -> list[str]:
    if "://" in uri:
        address, mark, options = uri.partition("?")
        folder, _, name = address.rpartition("/")
        store = open_store(folder + mark + options)
    else:
        path = Path(uri).expanduser().absolute()
        store, name = open_store(str(path.parent)), path.name
    if not store.exists(name):
        raise SpecError(f"{key} {uri!r}: there is no such file; correct the path or remove the key")
    data = store.read_bytes(name)
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{key} {uri!r}: line {line} is not UTF-8; save the list as UTF-8") from None


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
