"""Text codecs: nothing is lost, special tokens stay whole, and fitting is a function of the texts alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_codecs import PACKINGS, ROLES, SPECS, TEXTS, codec_of

from pipeline.data.characters import CharactersCodec
from pipeline.data.codec import Codec, make_codec
from pipeline.data.words import WordsCodec
from pipeline.errors import CodecError

SUBWORDS = ("bpe", "unigram")


@cache
def roomy(kind: str, packing: str = "documents", special_tokens: tuple[str, ...] = ()) -> Codec:
    return codec_of(kind=kind, packing=packing, length=600, special_tokens=special_tokens)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", ["bytes", *SUBWORDS])
def test_bytes_and_subwords_lose_no_text(kind: str, packing: str, text: str) -> None:
    codec = roomy(kind, packing)
    assert codec.decode(codec.encode(text)) == text + "\n" * (packing == "windows")
    assert codec.count_unknown(text) == 0


@given(text=st.text("the quick", max_size=40))
@pytest.mark.parametrize("packing", PACKINGS)
def test_known_characters_come_back(packing: str, text: str) -> None:
    codec = roomy("characters", packing)
    assert codec.decode(codec.encode(text)) == text + "\n" * (packing == "windows")


def test_known_words_come_back_with_one_space_between_them() -> None:
    codec = roomy("words")
    assert codec.decode(codec.encode(" the  lazy fox\n")) == "the lazy fox"
    assert codec.decode(codec.encode("the crazy fox")) == "the \N{REPLACEMENT CHARACTER} fox"
    assert codec.count_unknown("the crazy fox jumped") == 2


def test_words_are_ordered_by_how_often_they_are_seen() -> None:
    codec = make_codec(SPECS.validate_python({"kind": "words", "min_count": 2}))
    codec.fit(["b a c a", "b d a"])
    assert codec.state()["words"] == ["a", "b"]
    with pytest.raises(CodecError, match="no word of the training texts is seen 2 times"):
        codec.fit(["a b c"])


# One token is the beginning of another, one has a space and a letter outside of ASCII, one an expression's signs.
AWKWARD = ("<|user|>", "<|user|>>", "ende ß", ".*", "\u0120")


@given(parts=st.lists(st.one_of(st.sampled_from(AWKWARD), st.text("the <|>user", max_size=6)), max_size=8))
@pytest.mark.parametrize("kind", ["bytes", "characters", *SUBWORDS])
def test_special_tokens_come_back_wherever_they_stand(kind: str, parts: list[str]) -> None:
    codec = roomy(kind, special_tokens=AWKWARD)
    text = "".join(parts)
    if kind == "characters" and codec.count_unknown(text):  # of "|<>", which TEXTS do not have
        return
    assert codec.decode(codec.encode(text)) == text


@given(parts=st.lists(st.one_of(st.sampled_from(AWKWARD), st.text("the quick", max_size=6)), max_size=8))
@pytest.mark.parametrize("kind", ["bytes", "characters", *SUBWORDS])
def test_tokens_of_a_text_are_its_document_without_what_stands_around_it(kind: str, parts: list[str]) -> None:
    codec = roomy(kind, "windows", AWKWARD)
    text = "".join(parts)
    assert codec.tokens(text).tolist() == codec.encode(text).tolist()[:-1]


@pytest.mark.parametrize("kind", ["bytes", "characters", *SUBWORDS])
def test_a_special_token_is_one_identifier_between_symbols_and_packing(kind: str) -> None:
    codec = roomy(kind, special_tokens=tuple(ROLES))
    layout = codec.layout()
    assert layout.begin_token is not None and layout.pad_token == layout.vocabulary - 1
    user, system = layout.begin_token - 2, layout.begin_token - 1
    tokens = codec.encode("<|system|>the<|user|><|user|>fox").tolist()
    assert tokens[:2] == [layout.begin_token, system]
    assert tokens.count(user) == 2 and max(tokens[2 : tokens.index(user)]) < user
    assert codec.count_unknown("<|system|>the<|user|>") == 0


@pytest.mark.parametrize("kind", ["characters", *SUBWORDS])
def test_special_tokens_teach_no_symbols(kind: str) -> None:
    texts = ["<|user|>hello there<|system|>general"] * 20
    plain = make_codec(SPECS.validate_python({"kind": kind}))
    plain.fit([part for text in texts for part in ("hello there", "general")])
    special = make_codec(SPECS.validate_python({"kind": kind, "special_tokens": ROLES}))
    special.fit(texts)
    assert special.encode("hello").tolist()[:-1] == plain.encode("hello").tolist()[:-1]
    assert special.layout().vocabulary == plain.layout().vocabulary + 2


def test_unknown_characters_share_one_symbol_and_are_counted() -> None:
    codec = codec_of(kind="characters")
    assert codec.count_unknown("the ß dog ☃") == 2
    assert codec.decode(codec.encode("ß☃")) == "\ufffd\ufffd\n"


def test_a_rare_character_is_unknown() -> None:
    codec = codec_of(kind="characters", min_count=2)
    assert codec.count_unknown("春") == 1
    with pytest.raises(CodecError, match="min_count"):
        codec_of(kind="characters", min_count=10_000)


@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_characters_counted_in_parts_are_those_of_the_whole(texts: list[str]) -> None:
    codec = make_codec(SPECS.validate_python({"kind": "characters"}))
    assert isinstance(codec, CharactersCodec)
    parts = sum((codec.count([text]) for text in texts), Counter())
    assert parts == codec.count(texts) == Counter("".join(texts))
    if parts:
        codec.fit_counts(parts)
        whole = make_codec(SPECS.validate_python({"kind": "characters"}))
        whole.fit(texts)
        assert codec.state() == whole.state()


def test_words_counted_by_part_are_those_of_the_whole() -> None:
    texts = ["the lazy dog", "the fox", "", "a dog"]
    parts, whole = (make_codec(SPECS.validate_python({"kind": "words"})) for _ in range(2))
    assert isinstance(parts, WordsCodec)
    parts.fit_counts(sum((parts.count([text]) for text in texts), Counter()))
    whole.fit(texts)
    assert parts.state() == whole.state()


def test_a_single_document_has_no_special_token_in_its_stream() -> None:
    codec = make_codec(SPECS.validate_python({"kind": "characters"}), single_document=True)
    codec.fit(["abc"])
    assert codec.encode("abc").tolist() == [0, 1, 2]
    assert codec.layout().end_token is None


def test_a_document_that_is_cut_has_no_end_token() -> None:
    codec = codec_of(kind="bytes", packing="documents", length=6)
    layout = codec.layout()
    assert codec.encode("abc").tolist() == [layout.begin_token, 97, 98, 99, layout.end_token, layout.pad_token]
    assert codec.encode("abcd").tolist() == [layout.begin_token, 97, 98, 99, 100, layout.end_token]
    assert codec.encode("abcde").tolist() == [layout.begin_token, 97, 98, 99, 100, 101]
    assert codec.encode("abcdefgh").tolist() == [layout.begin_token, 97, 98, 99, 100, 101]


def test_documents_in_a_stream_keep_their_ends() -> None:
    codec = codec_of(kind="bytes")
    stream = np.concatenate(codec.encode_batch(["ab", "", "c"]))
    assert stream.tolist() == [97, 98, 245, 245, 99, 245]
    assert codec.decode(stream) == "ab\n\nc\n"


def test_a_byte_is_stored_in_a_byte() -> None:
    # 0xF4 begins the highest code points, and nothing begins or goes on with a higher byte.
    highest = chr(0x10FFFF).encode()
    codec = codec_of(kind="bytes", packing="documents", special_tokens=[f"<{number}>" for number in range(8)])
    assert max(highest) == codec.num_symbols - 1 == 0xF4
    assert codec.vocabulary == 256 and codec.layout().stored_dtype == codec.encode("a").dtype == "uint8"
    assert codec.decode(codec.encode(f"{chr(0x10FFFF)}<7>")) == f"{chr(0x10FFFF)}<7>"


def test_a_large_vocabulary_is_stored_in_two_bytes() -> None:
    codec = make_codec(SPECS.validate_python({"kind": "characters"}))
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 9000)))
    codec.fit([text])
    assert codec.layout().stored_dtype == "uint16"
    assert codec.decode(codec.encode(text)) == text + "\n"


@pytest.mark.parametrize("kind", SUBWORDS)
def test_the_vocabulary_is_as_large_as_asked_with_all_special_tokens(kind: str) -> None:
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefgh"), 4)) for _ in range(2000)]
    codec = make_codec(SPECS.validate_python({"kind": kind, "vocabulary_size": 320, "special_tokens": ROLES}))
    codec.fit(words)
    assert codec.layout().vocabulary == 320


@pytest.mark.parametrize("kind", ["characters", *SUBWORDS])
def test_fitting_reads_its_texts_once_and_as_it_goes(kind: str) -> None:
    alive: set[int] = set()
    most = 0

    class Text(str):
        def __del__(self) -> None:
            alive.discard(id(self))

    def texts() -> Iterator[str]:
        nonlocal most
        for i in range(4000):
            text = Text(f"text {i % 50} " * 60)
            alive.add(id(text))
            most = max(most, len(alive))
            yield text

    codec = make_codec(SPECS.validate_python({"kind": kind}))
    codec.fit(texts())
    assert codec.encode("text 7").size
    assert most < 2500


PROGRAM = """
import json, sys
from pipeline.data.codec import make_codec
from pipeline.spec import BpeCodecSpec, UnigramCodecSpec
texts = [f"{a}{b}{c}{d} {d}{c}{b}" for a in "bcdfg" for b in "aeiou" for c in "lmnrst" for d in ("ing", "春眠", "er")]
for spec in (BpeCodecSpec(kind="bpe", vocabulary_size=400), UnigramCodecSpec(kind="unigram", vocabulary_size=400)):
    codec = make_codec(spec)
    codec.fit(texts)
    print(json.dumps(codec.state()))
"""


def test_fitting_is_the_same_whatever_the_number_of_threads() -> None:
    """In processes of their own: the order of the trainers' hash maps differs from one to the next."""
    running = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, env={**os.environ, **variables})
        for variables in ({"RAYON_NUM_THREADS": "1"}, {"RAYON_NUM_THREADS": "2"}, {"TOKENIZERS_PARALLELISM": "false"})
    ]
    fitted = [process.communicate()[0] for process in running]
    assert fitted[0].count(b"\n") == 2 and len(json.loads(fitted[0].splitlines()[0])["tokenizer"]) > 1000
    assert fitted[0] == fitted[1] == fitted[2]


def test_texts_are_opened_with_and_without_a_byte_order_mark() -> None:
    codec = codec_of(kind="bytes")
    assert codec.open(b"\xef\xbb\xbfabc").raw == codec.open(b"abc").raw == codec.open("abc").raw == "abc"
    assert codec.shape(TEXTS[2]) == [TEXTS[2]]
