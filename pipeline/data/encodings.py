"""Encodings: which one a text is in, and the text.

Found where it is not named: a byte-order mark, then strict UTF-8, then what charset-normalizer makes of a bounded
sample, held against the whole. Pure Python, on the driver (big files) and in Ray Data's workers.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from pipeline.errors import CorpusError

AUTO = "auto"
UTF8 = "utf-8"
UNDECODED = "\N{REPLACEMENT CHARACTER}"
SAMPLE_BYTES = 64 * 2**10

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of utf-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CANDIDATES = (
    *("cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258"),
    *("gb18030", "big5", "cp932", "euc_jp", "cp949", "cp850", "mac_roman", "iso8859_2", "iso8859_5"),
)
"""What is looked for beyond Unicode; the first is taken of those that read a sample alike."""


def decode_text(data: bytes, encoding: str) -> tuple[str, str]:
    """The text of `data`, without a byte-order mark, and the encoding that it is in; `auto` finds out.

    Raises: CorpusError with the reason when the encoding, or with `auto` none that is known, does not fit.
    """
    if encoding == AUTO:
        finder = EncodingFinder()
        finder.feed(data)
        encoding = finder.find(lambda: [data])
    try:
        return without_mark(data, encoding).decode(encoding), encoding
    except UnicodeDecodeError as wrong:
        byte = wrong.object[wrong.start]
        reason = f"not {encoding}: byte 0x{byte:02x} at byte {wrong.start:,}"
    except UnicodeError as wrong:
        reason = f"not {encoding}: {wrong}"
    raise CorpusError(f"{reason}; set data.source.encoding")


def without_mark(data: bytes, encoding: str) -> bytes:
    """`data` without the byte-order mark that Python's UTF-8 codec would keep."""
    return data.removeprefix(codecs.BOM_UTF8) if encoding.replace("_", "-").lower() in ("utf-8", "utf8") else data


def check_encoding(encoding: str) -> None:
    """Raises: CorpusError when Python knows no such encoding of texts."""
    try:
        if encoding != AUTO:
            " ".encode(encoding)
    except (LookupError, UnicodeError):
        raise CorpusError(
            f"data.source.encoding {encoding!r} is unknown; 'auto' finds out, 'utf-8' is the usual one"
        ) from None


def keeps_ascii(encoding: str) -> bool:
    """Whether a byte below 128 is always that ASCII character, so that lines can be found without decoding."""
    ascii_bytes = bytes(range(128))
    try:
        same = ascii_bytes.decode("ascii").encode(encoding) == ascii_bytes
    except UnicodeError:
        return False
    return same and not codecs.lookup(encoding).name.startswith("iso2022")  # those shift by escape sequences


def lenient_reader(
    file: BinaryIO, encoding: str, at_start: bool = True, newline: str | None = None
) -> io.TextIOWrapper:
    """`file` as text, without a byte-order mark; `undecoded` finds what could not be decoded in a part of it.

    That is left as lone surrogates or, where bytes below 128 need not be ASCII, as U+FFFD.
    """
    name = "utf-8-sig" if encoding == UTF8 and at_start else encoding
    return io.TextIOWrapper(file, name, "surrogateescape" if keeps_ascii(encoding) else "replace", newline)


def undecoded(text: str, encoding: str) -> str | None:
    """Why `text`, from a `lenient_reader`, is not all in its encoding; None when it is."""
    try:
        text.encode(UTF8)
    except UnicodeEncodeError as wrong:
        byte = ord(text[wrong.start]) & 0xFF
        return f"not {encoding}: byte 0x{byte:02x} at character {wrong.start:,}; set data.source.encoding"
    if UNDECODED in text and not keeps_ascii(encoding):
        return f"not {encoding} at character {text.index(UNDECODED):,}; set data.source.encoding"
    return None


class EncodingFinder:
    """Finds the encoding of a text that passes by in pieces; keeps no more of it than a sample."""

    def __init__(self) -> None:
        self.head = b""
        self.sample = bytearray()
        self.cut = False
        self.is_utf8 = True
        self.fed = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the text."""
        first = not self.fed
        self.fed += len(piece)
        if len(self.head) < SAMPLE_BYTES:
            self.head += piece[: SAMPLE_BYTES - len(self.head)]
        pending = bool(self._utf8.getstate()[0])
        if piece.isascii() and not pending:
            return
        if len(self.sample) < SAMPLE_BYTES:
            self._take_sample(piece, first)
        if self.is_utf8:
            try:
                self._utf8.decode(piece)
            except UnicodeDecodeError:
                self.is_utf8 = False

    def find(self, again: Callable[[], Iterable[bytes]]) -> str:
        """The encoding, of Python's names; `again` gives the pieces once more, to hold a guess against them all.

        Raises: CorpusError with the reason when none fits.
        """
        marked = next((name for mark, name in BYTE_ORDER_MARKS if self.head.startswith(mark)), None)
        certain = marked or self._wide()
        if certain not in (None, "utf-8"):
            if _decodes(again(), str(certain)):
                return str(certain)
            if marked:
                raise CorpusError(f"it begins as {marked}, but does not go on so; set data.source.encoding")
        if self.is_utf8 and not self._utf8.getstate()[0]:
            return "utf-8"
        if marked or self._is_damaged_utf8():
            raise CorpusError("mostly UTF-8, with bytes that are not; mend them, or set data.source.encoding")
        for candidate in self._guesses():
            if _decodes(again(), candidate):
                return candidate
        raise CorpusError("neither UTF-8 nor any other encoding that is known fits; set data.source.encoding")

    def _take_sample(self, piece: bytes, first: bool) -> None:
        """Add the lines that are not plain ASCII: only they tell encodings apart."""
        lines = io.BytesIO(piece)
        if not first:
            lines.readline()  # its beginning was in the piece before
        for line in lines:
            found = re.search(rb"[\x80-\xff]", line)
            if found:
                room = SAMPLE_BYTES - len(self.sample)
                taken = line if len(line) <= room else line[found.start() : found.start() + room]
                self.sample += taken
                self.cut = not taken.endswith(b"\n")
            if len(self.sample) >= SAMPLE_BYTES:
                return

    def _wide(self) -> str | None:
        """UTF-16 or 32 without a byte-order mark, by the places of the NUL bytes."""
        if b"\0" not in self.head:
            return None
        columns = [self.head[place::4] for place in range(4)]
        nul = [column.count(0) / max(1, len(column)) for column in columns]
        if min(nul[2:]) > 0.9 and nul[0] < 0.5:
            return "utf-32-le"
        if min(nul[:2]) > 0.9 and nul[3] < 0.5:
            return "utf-32-be"
        even, odd = (nul[0] + nul[2]) / 2, (nul[1] + nul[3]) / 2
        if odd > 0.5 and even < 0.1:
            return "utf-16-le"
        return "utf-16-be" if even > 0.5 and odd < 0.1 else None

    def _is_damaged_utf8(self) -> bool:
        """Whether more is UTF-8 beyond ASCII than is not: by chance, bytes of another encoding hardly ever are."""
        text = bytes(self.sample).decode("utf-8", "surrogateescape")
        wrong = sum("\udc80" <= character <= "\udcff" for character in text)
        right = sum(character > "\x7f" for character in text) - wrong
        return right > wrong

    def _guesses(self) -> Iterator[str]:
        """Encodings that fit the sample, the likeliest first."""
        import charset_normalizer  # costs 30 ms, and most corpora never need it

        for missing in range(4 if self.cut else 1):  # a character may be cut through
            sample = bytes(self.sample[: len(self.sample) - missing])
            matches = charset_normalizer.from_bytes(sample, cp_isolation=list(CANDIDATES), enable_fallback=False)
            for match in matches:
                alike = set(match.could_be_from_charset)
                yield from (name for name in CANDIDATES if name in alike)


def _decodes(pieces: Iterable[bytes], encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for piece in pieces:
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    return True
