"""Finding numbers that states give to persons, by their shape, their check digits and, where these are weak, context."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from pipeline.data.cleaning.digits import Searched, Span


class NationalNumber(NamedTuple):
    """A state's number for persons.

    `shapes`: how it is written, 9 for a digit and A for a capital letter. `check`: the module of `stdnum` that knows
    its check digits, or a function. `context`: a pattern that must stand before it, where more than 1 in 100 random
    numbers of these shapes would pass the check.
    """

    country: str
    shapes: tuple[str, ...]
    check: str | Callable[[str], bool]
    context: str | None = None


# Areas 000, 666 and 9xx, group 00 and serial 0000 are never given (US Social Security Administration, RM 10201).
_SSN = re.compile(r"(?!000|666|9)[0-9]{3}([ -]?)(?!00)[0-9]{2}\1(?!0000)[0-9]{4}")
# Prefixes and suffixes that are given (HMRC, NIM39110).
_NINO = re.compile(r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][0-9]{6}[A-D]")
# Sex, year, and month of birth (20 and above where it is not known), before what the check digits cover.
_NIR = re.compile(r"[12][0-9]{2}(?:0[1-9]|1[0-2]|[2-9][0-9])")


def _is_ssn(number: str) -> bool:
    return bool(_SSN.fullmatch(number))


def _is_nino(number: str) -> bool:
    return bool(_NINO.fullmatch(number.replace(" ", "")))


def _is_nir(number: str) -> bool:
    return bool(_NIR.match(number.replace(" ", ""))) and bool(_module("fr.nir").is_valid(number))


NATIONAL_NUMBERS = (
    NationalNumber("US", ("999-99-9999", "999 99 9999"), _is_ssn),
    NationalNumber("US", ("999999999",), _is_ssn, r"\bssn\b|social security"),
    NationalNumber("US", ("999-99-9999",), "us.itin"),
    NationalNumber("CA", ("999 999 999", "999-999-999", "999999999"), "ca.sin", r"\bsin\b|social insurance|\bnas\b"),
    NationalNumber("MX", ("AAAA999999AAAAAA99", "AAAA999999AAAAAAA9"), "mx.curp"),
    NationalNumber("BR", ("999.999.999-99",), "br.cpf"),
    NationalNumber("BR", ("99999999999",), "br.cpf", r"\bcpf\b"),
    NationalNumber("GB", ("AA999999A", "AA 99 99 99 A", "AA 999999 A", "AA 999 999 A"), _is_nino),
    NationalNumber("GB", ("999 999 9999", "999-999-9999", "9999999999"), "gb.nhs", r"\bnhs\b|health service"),
    NationalNumber("DE", ("99 999 999 999", "99999999999"), "de.idnr"),
    NationalNumber(
        "FR",
        ("9 99 99 99 999 999 99", "9 99 99 9A 999 999 99", "999999999999999", "9999999999999 99", "999999A99999999"),
        _is_nir,
    ),
    NationalNumber("ES", ("99999999A", "99999999-A", "99.999.999-A", "99999999 A"), "es.dni"),
    NationalNumber("ES", ("A9999999A", "A-9999999-A", "A-9999999A", "A9999999-A"), "es.nie"),
    NationalNumber("IT", ("AAAAAA99A99A999A", "AAA AAA 99A99 A999A"), "it.codicefiscale"),
    NationalNumber("NL", ("999999999", "9999.99.999", "9999 99 999"), "nl.bsn", r"\bbsn\b|burgerservice|sofi"),
    NationalNumber("BE", ("99.99.99-999.99", "99999999999"), "be.nn"),
    NationalNumber("PL", ("99999999999",), "pl.pesel", r"\bpesel\b"),
    NationalNumber("SE", ("999999-9999", "99999999-9999", "999999+9999"), "se.personnummer"),
    NationalNumber("NO", ("99999999999", "999999 99999"), "no.fodselsnummer"),
    NationalNumber("FI", ("999999-999A", "999999A999A", "999999A9999", "999999-9999", "999999+999A"), "fi.hetu"),
    NationalNumber("DK", ("999999-9999", "999999 9999", "9999999999"), "dk.cpr", r"\bcpr\b|personnummer"),
    NationalNumber("ZA", ("9999999999999", "999999 9999 999", "999999 9999 99 9"), "za.idnr"),
    NationalNumber("TR", ("99999999999",), "tr.tckimlik", r"\btckn\b|\btc\b|kimlik"),
    NationalNumber("CN", ("999999999999999999", "99999999999999999A"), "cn.ric"),
    NationalNumber("KR", ("999999-9999999",), "kr.rrn"),
    NationalNumber(
        "IN", ("9999 9999 9999", "9999-9999-9999", "999999999999"), "in_.aadhaar", r"\baadhaa?r\b|\buid(?:ai)?\b|आधार"
    ),
    NationalNumber("IN", ("AAAAA9999A",), "in_.pan"),
    NationalNumber("AU", ("999 999 999", "999999999"), "au.tfn", r"\btfn\b|tax file"),
)

_RUN = re.compile(r"(?<![A-Za-z0-9])[A-Z0-9]++(?![a-z])(?:[ .\-/+][A-Z0-9]++(?![a-z]))*")
_GROUP = re.compile(r"[A9]+")
_TO_SHAPE = str.maketrans("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", "9" * 10 + "A" * 26)
_BY_SHAPE = {
    shape: [number for number in NATIONAL_NUMBERS if shape in number.shapes]
    for number in NATIONAL_NUMBERS
    for shape in number.shapes
}
_MOST_GROUPS = max(len(_GROUP.findall(shape)) for shape in _BY_SHAPE)


def national_numbers(searched: Searched) -> Iterator[Span]:
    """Numbers of `NATIONAL_NUMBERS` that stand alone: in a chain of groups, only spaces part them from the others."""
    for run in searched.matches(_RUN):
        shape = run[0].translate(_TO_SHAPE)
        if shape.count("9") < 4:
            continue
        groups = [group.span() for group in _GROUP.finditer(shape)]
        for first, (start, _) in enumerate(groups):
            if start and shape[start - 1] != " " and "9" in shape[groups[first - 1][0] : start]:
                continue
            for _, end in groups[first : first + _MOST_GROUPS]:
                if shape[start:end] in _BY_SHAPE and not (shape[end : end + 1] in "-/+" and end < len(shape)):
                    place = run.start() + start
                    if _is_given(run[0][start:end], shape[start:end], searched.before(place)):
                        yield place, run.start() + end


def _is_given(number: str, shape: str, before: str) -> bool:
    return any(
        (kind.context is None or re.search(rf"(?:{kind.context})[^0-9]{{0,40}}$", before, re.IGNORECASE))
        and (_module(kind.check).is_valid(number) if isinstance(kind.check, str) else kind.check(number))
        for kind in _BY_SHAPE[shape]
    )


@cache
def _module(name: str) -> object:
    return importlib.import_module(f"stdnum.{name}")
