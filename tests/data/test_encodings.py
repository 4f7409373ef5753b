"""Encodings: found where they are not named, and never guessed where UTF-8 is merely damaged."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.encodings import SAMPLE_BYTES, EncodingFinder, check_encoding, decode_text, keeps_ascii
from pipeline.errors import CorpusError

TEXTS = {
    "cp1252": "Le café est fermé à l'été, hélas ; les garçons disent « non » — c’est dommage.\n",
    "cp1250": "Zażółć gęślą jaźń, proszę państwa. Święta są już blisko.\n",
    "cp1251": "Привет, как дела? Сегодня хорошая погода в Москве.\n",
    "koi8_r": "Привет, как дела? Сегодня хорошая погода в Москве.\n",
    "cp1253": "Καλημέρα κόσμε, τι κάνεις σήμερα;\n",
    "cp932": "これは日本語のテキストです。漢字とひらがな。\n",
    "euc_jp": "これは日本語のテキストです。漢字とひらがな。\n",
    "gb18030": "这是一个中文文本。天气很好。我们去公园。\n",
    "big5": "這是一個中文文本。天氣很好。我們去公園。\n",
    "cp949": "안녕하세요. 오늘 날씨가 좋습니다.\n",
}


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")), st.sampled_from(["", "\ufeff"])
)
def test_utf8_is_always_found_and_its_mark_left_out(text: str, mark: str) -> None:
    assert decode_text((mark + text).encode(), "auto") == (text, "utf-8")
    assert decode_text((mark + text).encode(), "utf-8") == (text, "utf-8")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1))
def test_unicode_with_a_byte_order_mark_is_found(text: str) -> None:
    for name, marks in {"utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-32": (codecs.BOM_UTF32_LE,)}.items():
        for mark in marks:
            variant = name + ("-be" if mark == codecs.BOM_UTF16_BE else "-le")
            assert decode_text(mark + text.encode(variant), "auto") == (text, name)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_unicode_without_a_byte_order_mark_is_found_by_its_zeros(encoding: str) -> None:
    text = "Plain words, and a caf\u00e9.\n"
    assert decode_text(text.encode(encoding), "auto") == (text, encoding)


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("times", [1, 500])
def test_encodings_before_unicode_are_found(encoding: str, times: int) -> None:
    text = "A line in plain English.\n" * 3000 + TEXTS[encoding] * times
    assert decode_text(text.encode(encoding), "auto") == (text, encoding)


def test_a_short_word_is_read_as_western_european() -> None:
    assert decode_text("plain\ncaf\u00e9".encode("latin-1"), "auto") == ("plain\ncaf\u00e9", "cp1252")


def test_utf8_with_a_damaged_byte_is_not_taken_for_another_encoding() -> None:
    damaged = ("Le café est fermé.\n" * 10).encode() + b"caf\xe9\n"
    with pytest.raises(CorpusError, match="mostly UTF-8"):
        decode_text(damaged, "auto")


def test_what_is_no_text_is_refused_with_a_reason() -> None:
    with pytest.raises(CorpusError, match=r"no.* other encoding that is known fits"):
        decode_text(bytes(range(256)) * 20, "auto")
    with pytest.raises(CorpusError, match=r"not utf-8: byte 0xe9 at byte 3; set data.source.encoding"):
        decode_text(b"caf\xe9", "utf-8")
    with pytest.raises(CorpusError, match="begins as utf-16"):
        decode_text(codecs.BOM_UTF16_LE + "a\n".encode("utf-16-le") + b"\x00", "auto")


@given(st.lists(st.sampled_from(["plain\n", "café\n", "春\n", "x" * 30 + "é"])), st.integers(1, 20))
def test_pieces_give_what_the_whole_gives(lines: list[str], size: int) -> None:
    data = "".join(lines).encode()
    finder = EncodingFinder()
    for start in range(0, len(data), size):
        finder.feed(data[start : start + size])
    assert finder.find(lambda: [data]) == "utf-8"


def test_a_sample_stays_small() -> None:
    finder = EncodingFinder()
    for _ in range(8):
        finder.feed(("é" * 50_000).encode("cp1252"))
    assert len(finder.sample) <= SAMPLE_BYTES and len(finder.head) <= SAMPLE_BYTES


def test_only_encodings_that_keep_ascii_can_be_cut_at_their_newlines() -> None:
    assert all(keeps_ascii(name) for name in ("utf-8", "latin-1", "cp1252", "gb18030", "cp932", "euc_jp"))
    assert not any(keeps_ascii(name) for name in ("utf-16", "utf-16-le", "utf-32", "cp500", "utf-7", "iso2022_jp"))


@pytest.mark.parametrize("name", ["utf-99", "rot13", "base64"])
def test_an_encoding_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(CorpusError, match="is unknown; 'auto' finds out"):
        check_encoding(name)
