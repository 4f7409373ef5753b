"""Finding numbers that states give to persons, by shape, check digits and, where these are weak, a word before them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from pipeline.data.cleaning.digits import Searched, Span


class NationalNumber(NamedTuple):
    """A state's number for persons.

    `shapes`: how it is written, 9 for a digit and A for a capital letter. `check`: the module of `stdnum` that knows
    its check digits, or a function. `words`: one of them must stand before it, where more than 1 in 100 random numbers
    of these shapes would pass the check (two words are joined: see `Searched.words_before`).
    """

    country: str
    shapes: tuple[str, ...]
    check: str | Callable[[str], bool]
    words: str = ""


# Areas 000, 666 and 9xx, group 00 and serial 0000 are never given (US Social Security Administration, RM 10201).
_SSN = re.compile(r"(?!000|666|9)[0-9]{3}([ -]?)(?!00)[0-9]{2}\1(?!0000)[0-9]{4}")
# Prefixes and suffixes that are given (HMRC, NIM39110).
_NINO = re.compile(r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][0-9]{6}[A-D]")
# Sex, year, and month of birth (20 and above where it is not known), before what the check digits cover.
_NIR = re.compile(r"[12][0-9]{2}(?:0[1-9]|1[0-2]|[2-9][0-9])")
# A district of China, a date of birth (GB 11643-1999).
_RIC_DATE = re.compile(r"[1-8][0-9]{5}(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])")


def _is_ssn(number: str) -> bool:
    return bool(_SSN.fullmatch(number))


def _is_nino(number: str) -> bool:
    return bool(_NINO.fullmatch(number.replace(" ", "")))


def _is_nir(number: str) -> bool:
    return bool(_NIR.match(number.replace(" ", ""))) and bool(_module("fr.nir").is_valid(number))


def _is_ric(number: str) -> bool:
    # stdnum's own test also asks whether the place existed in the year of birth; numbers are given later than that.
    return bool(_RIC_DATE.match(number)) and _module("cn.ric").calc_check_digit(number) == number[-1]


NATIONAL_NUMBERS = (
    NationalNumber("US", ("999-99-9999", "999 99 9999"), _is_ssn),
    NationalNumber("US", ("999999999",), _is_ssn, "ssn ssns socialsecurity"),
    NationalNumber("US", ("999-99-9999",), "us.itin"),
    NationalNumber("CA", ("999 999 999", "999-999-999", "999999999"), "ca.sin", "sin socialinsurance nas"),
    NationalNumber("MX", ("AAAA999999AAAAAA99", "AAAA999999AAAAAAA9"), "mx.curp"),
    NationalNumber("BR", ("999.999.999-99",), "br.cpf"),
    NationalNumber("BR", ("99999999999",), "br.cpf", "cpf"),
    NationalNumber("GB", ("AA999999A", "AA 99 99 99 A", "AA 999999 A", "AA 999 999 A"), _is_nino),
    NationalNumber("GB", ("999 999 9999", "999-999-9999", "9999999999"), "gb.nhs", "nhs healthservice"),
    NationalNumber("DE", ("99 999 999 999", "99999999999"), "de.idnr"),
    NationalNumber(
        "FR",
        ("9 99 99 99 999 999 99", "9 99 99 9A 999 999 99", "999999999999999", "9999999999999 99", "999999A99999999"),
        _is_nir,
    ),
    NationalNumber("ES", ("99999999A", "99999999-A", "99.999.999-A", "99999999 A"), "es.dni"),
    NationalNumber("ES", ("A9999999A", "A-9999999-A", "A-9999999A", "A9999999-A"), "es.nie"),
    NationalNumber("IT", ("AAAAAA99A99A999A", "AAA AAA 99A99 A999A"), "it.codicefiscale"),
    NationalNumber("NL", ("999999999", "9999.99.999", "9999 99 999"), "nl.bsn", "bsn burgerservicenummer sofinummer"),
    NationalNumber("BE", ("99.99.99-999.99", "99999999999"), "be.nn"),
    NationalNumber("PL", ("99999999999",), "pl.pesel", "pesel"),
    NationalNumber("SE", ("999999-9999", "99999999-9999", "999999+9999"), "se.personnummer"),
    NationalNumber("NO", ("99999999999", "999999 99999"), "no.fodselsnummer"),
    NationalNumber("FI", ("999999-999A", "999999A999A", "999999A9999", "999999-9999", "999999+999A"), "fi.hetu"),
    NationalNumber("DK", ("999999-9999", "999999 9999", "9999999999"), "dk.cpr", "cpr cprnummer personnummer"),
    NationalNumber("ZA", ("9999999999999", "999999 9999 999", "999999 9999 99 9"), "za.idnr"),
    NationalNumber("TR", ("99999999999",), "tr.tckimlik", "tckn tc kimlik"),
    NationalNumber("CN", ("999999999999999999", "99999999999999999A"), _is_ric),
    NationalNumber("KR", ("999999-9999999",), "kr.rrn"),
    NationalNumber(
        "IN", ("9999 9999 9999", "9999-9999-9999", "999999999999"), "in_.aadhaar", "aadhaar aadhar uid uidai आधार"
    ),
    NationalNumber("IN", ("AAAAA9999A",), "in_.pan"),
    NationalNumber("AU", ("999 999 999", "999999999"), "au.tfn", "tfn taxfile"),
)

_RUN = re.compile(r"(?<![A-Za-z0-9+])(?<![0-9][-./+])[A-Z0-9]++(?![a-z])(?:[ .\-/+][A-Z0-9]++(?![a-z]))*")
_GROUP = re.compile(r"[A9]+")
_TO_SHAPE = str.maketrans("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", "9" * 10 + "A" * 26)
_BY_SHAPE = {
    shape: [number for number in NATIONAL_NUMBERS if shape in number.shapes]
    for number in NATIONAL_NUMBERS
    for shape in number.shapes
}
_FIRST_GROUPS = frozenset(match[0] for match in map(_GROUP.match, _BY_SHAPE) if match)
_MOST_GROUPS = max(len(_GROUP.findall(shape)) for shape in _BY_SHAPE)


def national_numbers(searched: Searched) -> Iterator[Span]:
    """Numbers of `NATIONAL_NUMBERS` that stand alone: in a chain of groups, only spaces part them from the others."""
    for run in searched.matches(_RUN):
        text = run[0]
        shape = text.translate(_TO_SHAPE)
        digits = shape.count("9")
        if digits < 4 or (digits < 9 and "A" not in shape):
            continue
        groups = [group.span() for group in _GROUP.finditer(shape)]
        for first, (start, first_end) in enumerate(groups):
            if shape[start:first_end] not in _FIRST_GROUPS:
                continue
            if _is_chained(shape, groups, first):
                continue
            for last in range(first, min(len(groups), first + _MOST_GROUPS)):
                end = groups[last][1]
                if shape[start:end] in _BY_SHAPE and not _is_chained(shape, groups, last + 1):
                    place = run.start() + start
                    if _is_given(text[start:end], shape[start:end], searched.words_before(place)):
                        yield place, run.start() + end


def _is_chained(shape: str, groups: list[Span], group: int) -> bool:
    """Whether something else than a space stands between a group and the one before, and both have digits."""
    if not 0 < group < len(groups):
        return False
    (before, end), (start, after) = groups[group - 1], groups[group]
    return shape[end] != " " and "9" in shape[before:end] and "9" in shape[start:after]


def _is_given(number: str, shape: str, words: set[str]) -> bool:
    return any(
        (not kind.words or not words.isdisjoint(kind.words.split()))
        and (_module(kind.check).is_valid(number) if isinstance(kind.check, str) else kind.check(number))
        for kind in _BY_SHAPE[shape]
    )


@cache
def _module(name: str) -> Any:
    return importlib.import_module(f"stdnum.{name}")
