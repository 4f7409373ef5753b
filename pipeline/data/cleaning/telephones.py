"""Finding telephone numbers: international ones by their calling code, national ones by their shape or their context.

The `phonenumbers` package knows every country's calling code and lengths; its own matcher reads 15 MB/s of prose for
one country at a time, so that it only judges what a pattern here has found.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator

from pipeline.data.cleaning.digits import Searched, Span

_ALONE_BEFORE = r"(?<![A-Za-z0-9])(?<![0-9][-./,:+])"
_ALONE_AFTER = r"(?![A-Za-z0-9])(?![-./:][0-9])"
_EXTENSION = r"(?:\s?(?:x|ext\.?|extension)\s?[0-9]{1,6})?"

_INTERNATIONAL = re.compile(
    r"(?<![A-Za-z0-9+])(?:\+\s?|00\s?(?=[1-9]))\(?[1-9](?:[ .\-/()]{0,3}+[0-9]){6,16}" + _EXTENSION + r"(?![0-9])"
)

# Each shape is specific enough to be taken without a word such as "phone" before it.
_SHAPES = re.compile(
    _ALONE_BEFORE
    + r"(?:"
    + "|".join(
        (
            r"(?:1[-. ]?)?(?:\([2-9][0-9]{2}\)[-. ]?|[2-9][0-9]{2}[-./ ])[0-9]{3}[-. ][0-9]{4}",  # North America, Italy
            r"\(?0[1-9][0-9]{0,4}\)?[ ]?[-./ ]?[ ]?[0-9]{2,8}(?:[ .-][0-9]{2,8}){0,4}",  # a trunk 0: see _is_trunk
            r"8[ -]?\(?[3-9][0-9]{2}\)?[ -][0-9]{3}-[0-9]{2}-[0-9]{2}",  # Russia
            r"[5-9][0-9]{2}(?P<pair>[ .-])[0-9]{2}(?P=pair)[0-9]{2}(?P=pair)[0-9]{2}",  # Spain
            r"1[3-9][0-9][ -][0-9]{4}[ -][0-9]{4}",  # China, mobile
            r"[6-9][0-9]{4}[ -][0-9]{5}",  # India, mobile
            r"\([1-9][0-9]\)\s?9?\s?[0-9]{4}-[0-9]{4}",  # Brazil
            r"1[38]00[ -][0-9]{3}[ -][0-9]{3}",  # Australia
        )
    )
    + r")"
    + _EXTENSION
    + _ALONE_AFTER
)
_TRUNK_DATE = re.compile(r"0[1-9][./-](?:0[1-9]|1[0-2])[./-](?:19|20)[0-9]{2}")

_AFTER_A_WORD = re.compile(_ALONE_BEFORE + r"\(?[0-9](?:[ .\-/()]{0,2}+[0-9]){6,14}" + _EXTENSION + _ALONE_AFTER)
TELEPHONE_WORDS = """
    phone phones telephone tel ph mobile mob cell cellphone fax telefax whatsapp call dial telefon telefono teléfono
    telefone téléphone tél tlf handy mobil mobiltelefon móvil celular cellulare portable телефон тел 电话 電話 手机
    手機 携帯 전화 전화번호
"""
WEAK_WORDS = "number numbers contact contacting reach line numéro número nummer"
OTHER_WORDS = """
    order invoice ticket ref reference isbn issn doi booking confirmation account case id code serial price date year
    tracking model part item product customer policy passport flight
"""
_TELEPHONE_WORDS, _WEAK_WORDS, _OTHER_WORDS = (
    frozenset(words.split()) for words in (TELEPHONE_WORDS, WEAK_WORDS, OTHER_WORDS)
)
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:[ .][0-9]{3})+")
_DATE = re.compile(
    r"(?:[12][0-9]{3}[-./ ][0-9]{1,2}[-./ ][0-9]{1,2}|[0-9]{1,2}[-./ ][0-9]{1,2}[-./ ][12][0-9]{3}"
    r"|[12][0-9]{3}[-/][12][0-9]{3})(?![0-9])"
)


def telephones(searched: Searched) -> Iterator[Span]:
    """Telephone numbers in plain text.

    International: `+` or `00`, a calling code that exists and a length that its country has. National, without a word
    before them: the shapes of North America (3-3-4), of numbers with a trunk 0 (9 to 12 digits in groups), of Russia,
    Spain, China, India, Brazil and Australia. All else (7 to 15 digits, in one run too) after a word such as `phone`,
    `tel`, `call` in some languages, or (9 digits or more, in groups) after `number` or `contact`, unless it is a date,
    or a word such as `order` or `ticket` stands there too.
    """
    found: list[Span] = []
    for match in searched.matches(_INTERNATIONAL):
        end = _international_end(match)
        if end:
            found.append((match.start(), end))
    for match in searched.matches(_SHAPES):
        if match[0].lstrip("(")[0] != "0" or _is_trunk(match[0]):
            found.append(match.span())
    yield from found
    found.sort()
    for match in searched.matches(_AFTER_A_WORD):
        beside = bisect.bisect_left(found, match.span())
        if any(start < match.end() and match.start() < end for start, end in found[max(0, beside - 1) : beside + 1]):
            continue
        words = searched.words_before(match.start())
        named = words & _TELEPHONE_WORDS or (words & _WEAK_WORDS and _is_grouped(match[0]))
        if named and not words & _OTHER_WORDS and not _DATE.match(match[0]):
            yield match.span()


def _international_end(match: re.Match[str]) -> int | None:
    """Where the longest number ends that its country can have, at the end of a group of digits, or None."""
    import phonenumbers

    text, possible = match[0], None
    for group in reversed(list(re.finditer(r"[0-9]+", text))):
        try:
            number = phonenumbers.parse("+" + re.sub(r"^\+|^00", "", text[: group.end()]), None)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            return match.start() + group.end()
        if possible is None and text[0] == "+" and phonenumbers.is_possible_number(number):
            possible = match.start() + group.end()
    return possible


def _is_grouped(text: str) -> bool:
    """Whether a number has nine digits or more in groups that are not thousands."""
    return not text.isdigit() and sum(map(str.isdigit, text)) >= 9 and not _THOUSANDS.fullmatch(text)


def _is_trunk(text: str) -> bool:
    """Whether a number that begins with 0 has the digits and groups of a telephone number, and is no date."""
    groups = re.findall(r"[0-9]+", text)
    separators = set(re.findall(r"[^0-9()]+", text))
    if not 9 <= sum(map(len, groups)) <= 12 or len(groups) < 2 or _TRUNK_DATE.match(text):
        return False
    return max(map(len, groups)) > 2 or (len(groups) == 5 and len(separators) == 1)  # pairs are French
