"""Finding payment cards and bank accounts, both by their check digits."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.data.cleaning.digits import Searched, Span

_GROUPS = re.compile(r"(?<![A-Za-z0-9])(?<![0-9][./+])[0-9](?:[ -]?[0-9]){12,}+")
_DIGITS = re.compile(r"[0-9]+")
CARD_WORDS = """
    card cards visa mastercard amex americanexpress credit debit carte tarjeta kreditkarte creditcard 用卡 卡号
"""
_CARD_WORDS = frozenset(CARD_WORDS.split())
# Issuers' first digits and lengths (ISO/IEC 7812). Visa's old 13 digits are also those of an EAN bar code: they need a
# word before them.
_ISSUERS = re.compile(
    r"4(?:[0-9]{15}|[0-9]{18})"  # Visa
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|(?:30[0-5][0-9]|309[0-9]|3[689][0-9]{2})[0-9]{10,15}"  # Diners Club
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12,15}"  # Discover
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12,15}"  # JCB
    r"|(?:62|81)[0-9]{14,17}"  # UnionPay
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{9,15}"  # Maestro
    r"|220[0-4][0-9]{12,15}"  # Mir
)

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}")
_IBAN_LENGTHS = range(15, 35)


def cards(searched: Searched) -> Iterator[Span]:
    """Payment cards: 13 to 19 digits in one run or in groups parted by single spaces or hyphens, with a right check
    digit (Luhn; ISO/IEC 7812-1). Without a word such as `card` before it: an issuer's first digits and length, and
    groups of at least four digits but the last."""
    for match in searched.matches(_GROUPS):
        text = match[0]
        groups = [group.span() for group in _DIGITS.finditer(text)]
        if searched.text[match.end() : match.end() + 1].isalnum():
            groups.pop()
        named = bool(searched.words_before(match.start()) & _CARD_WORDS)
        first = 0
        while first < len(groups):
            last = _card_end(text, groups, first, named)
            if last is not None:
                yield match.start() + groups[first][0], match.start() + groups[last][1]
            first = first + 1 if last is None else last + 1


def _card_end(text: str, groups: list[Span], first: int, named: bool) -> int | None:
    """The last group of the longest card that begins with the group `first`, or None."""
    digits, found = "", None
    for last in range(first, len(groups)):
        start, end = groups[last]
        digits += text[start : min(end, start + 20)]
        if len(digits) > 19:
            break
        if len(digits) >= 13 and (named or _ISSUERS.fullmatch(digits)) and is_luhn(digits):
            found = last
        if end - start < 4 and not named:
            break
    return found


def is_luhn(digits: str) -> bool:
    """Whether the last of `digits` is the check digit of the others (Luhn; ISO/IEC 7812-1, annex B)."""
    total = sum(map(int, digits[-1::-2])) + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0 and digits.strip("0") != ""


def bank_accounts(searched: Searched) -> Iterator[Span]:
    """International bank account numbers (ISO 13616): check digits (ISO 7064, mod 97) and the country's structure."""
    from stdnum import iban

    for match in searched.matches(_IBAN):
        text = match[0]
        places = [place for place, character in enumerate(text) if character.isalnum()]
        for length in reversed(_IBAN_LENGTHS):
            if length > len(places):
                continue
            end = places[length - 1] + 1
            after = searched.text[match.start() + end : match.start() + end + 1]
            if not after.isalnum() and iban.is_valid(text[:end].replace("-", "").replace(" ", "").upper(), False):
                yield match.start(), match.start() + end
                break
