"""Personal data made up by a seed, with valid check digits, and put into prose: truth for what finds and masks it.

The check digits are computed here, or by the packages' own generators, not by the code under test.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from functools import cache

from pipeline.spec.data import PersonalData

Item = tuple[PersonalData, str]

_NAMES = ("ada", "boris", "chloe", "dmitri", "eva", "farid", "grace", "hiro", "ines", "jan", "kofi", "lena")
_SURNAMES = ("lovelace", "o'neil", "smith-jones", "novak", "garcia", "tanaka", "mueller", "okafor", "ivanova")
_HOSTS = ("example.com", "mail.example.org", "uni-bonn.de", "sub.dept.co.uk", "xn--bcher-kva.example", "startup.io")


def personal_items(seed: int, count: int) -> list[Item]:
    """`count` items of each kind, as (kind, string): all of forms that are told without a word before them."""
    rng = random.Random(seed)
    return [(kind, make(rng)) for kind, make in _MAKERS.items() for _ in range(count)]


def plant(seed: int, items: Sequence[Item], prose: str) -> list[str]:
    """A document for each item: a stretch of `prose`, cut at a word, with the item in it, amid a sentence, before or
    after punctuation, in quotes or brackets, or at the beginning or the end of a line or of the document."""
    rng = random.Random(seed)
    words = prose.split(" ")
    frames = (
        " {} ",
        " {}, ",
        " {}. ",
        " ({}) ",
        ' "{}" ',
        "\n{}\n",
        ": {}; ",
        "\n- {}! ",
        " {}?\n",
        " <{}> ",
        "\t{}\t",
    )
    documents = []
    for _, item in items:
        start, length = rng.randrange(max(1, len(words) - 40)), rng.randrange(40)
        middle = start + rng.randrange(length + 1)
        before, after = " ".join(words[start:middle]), " ".join(words[middle : start + length])
        documents.append(before + rng.choice(frames).format(item) + after)
    return documents


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def _letters(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=count))


def _email(rng: random.Random) -> str:
    name, surname = rng.choice(_NAMES), rng.choice(_SURNAMES)
    local = rng.choice(
        [f"{name}.{surname}", f"{name[0]}{surname}", f"{name}_{rng.randrange(100)}", f"{name}+news", name]
    )
    address = f"{local}@{rng.choice(_HOSTS)}"
    return rng.choice([address, address, address.title(), address.upper()])


@cache
def _example_numbers() -> list[str]:
    """An example of every country and type that `phonenumbers` has, in its international forms."""
    import phonenumbers
    from phonenumbers import PhoneNumberFormat, PhoneNumberType

    found = []
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for kind in (PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE):
            number = phonenumbers.example_number_for_type(region, kind)
            if number is not None:
                forms = (PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.E164)
                found += [phonenumbers.format_number(number, form) for form in forms]
    return found


def _telephone(rng: random.Random) -> str:
    area, exchange, line = f"{rng.randrange(201, 990)}", f"{rng.randrange(200, 1000)}", _digits(rng, 4)
    north_american = (
        f"{area}-{exchange}-{line}",
        f"({area}) {exchange}-{line}",
        f"{area}.{exchange}.{line}",
        f"+1 {area} {exchange} {line}",
        f"1-{area}-{exchange}-{line}",
        f"({area}) {exchange}-{line} ext. {rng.randrange(10, 9999)}",
    )
    other = (
        f"020 7946 0{_digits(rng, 3)}",
        f"(0161) 496 0{_digits(rng, 3)}",
        f"07700 900{_digits(rng, 3)}",
        f"+44 (0)20 7946 0{_digits(rng, 3)}",
        f"030/{rng.randrange(10**6, 10**8)}",
        f"+49 30 {rng.randrange(10**6, 10**7)}",
        f"0171-{rng.randrange(10**6, 10**7)}",
        f"0{rng.randrange(1, 8)} " + " ".join(f"{_digits(rng, 2)}" for _ in range(4)),
        f"6{_digits(rng, 2)} {_digits(rng, 2)} {_digits(rng, 2)} {_digits(rng, 2)}",
        f"06 {rng.randrange(1000, 9999)} {_digits(rng, 4)}",
        f"090-{_digits(rng, 4)}-{_digits(rng, 4)}",
        f"138 {_digits(rng, 4)} {_digits(rng, 4)}",
        f"98{_digits(rng, 3)} {_digits(rng, 5)}",
        f"(11) 9{_digits(rng, 4)}-{_digits(rng, 4)}",
        f"8 (495) {_digits(rng, 3)}-{_digits(rng, 2)}-{_digits(rng, 2)}",
    )
    return rng.choice([rng.choice(north_american), rng.choice(other), rng.choice(_example_numbers())])


def _with_luhn(digits: str) -> str:
    doubled = [int(digit) * (1 + (place % 2 == 0)) for place, digit in enumerate(reversed(digits))]
    return digits + str(-sum(value // 10 + value % 10 for value in doubled) % 10)


_CARD_PREFIXES = {14: "36 300", 15: "34 37", 16: "4 4 4 51 55 2221 2720 38 6011 65 3528 62 6759 2202", 19: "4 62"}


def _card(rng: random.Random) -> str:
    prefix, length = rng.choice(
        [(prefix, length) for length, prefixes in _CARD_PREFIXES.items() for prefix in prefixes.split()]
    )
    number = _with_luhn(prefix + _digits(rng, length - len(prefix) - 1))
    groups = {14: (4, 6, 4), 15: (4, 6, 5), 16: (4, 4, 4, 4), 19: (4, 4, 4, 4, 3)}[length]
    places = [sum(groups[:i]) for i in range(len(groups))]
    return rng.choice(["", " ", "-"]).join(
        number[place : place + size] for place, size in zip(places, groups, strict=True)
    )


def _iban(rng: random.Random) -> str:
    country, account = rng.choice(
        [
            ("AT", _digits(rng, 16)),
            ("CH", _digits(rng, 17)),
            ("DE", _digits(rng, 18)),
            ("ES", _digits(rng, 20)),
            (
                "FR",
                _digits(rng, 10)
                + rng.choice([_digits(rng, 11), _digits(rng, 5) + _letters(rng, 2) + _digits(rng, 4)])
                + _digits(rng, 2),
            ),
            ("GB", _letters(rng, 4) + _digits(rng, 14)),
            ("IT", _letters(rng, 1) + _digits(rng, 22)),
            ("MT", _letters(rng, 4) + _digits(rng, 5) + "0012345MTLCAST001S"),
            ("NL", _letters(rng, 4) + _digits(rng, 10)),
            ("NO", _digits(rng, 11)),
            ("PL", _digits(rng, 24)),
        ]
    )
    check = 98 - int("".join(str(int(character, 36)) for character in account + country + "00")) % 97
    number = f"{country}{check:02d}{account}"
    spaced = " ".join(number[i : i + 4] for i in range(0, len(number), 4))
    return rng.choice([number, spaced, spaced, spaced.replace(" ", "-"), number.lower()])


def _weighted(digits: str, weights: Sequence[int], modulus: int = 11) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True)) % modulus


def _date(rng: random.Random) -> tuple[str, str, str]:
    return f"{rng.randrange(30, 100)}", f"{rng.randrange(1, 13):02d}", f"{rng.randrange(1, 29):02d}"


def _ssn(rng: random.Random) -> str:
    area = rng.choice([rng.randrange(1, 666), rng.randrange(667, 900)])
    return rng.choice(["-", "-", " "]).join(
        [f"{area:03d}", f"{rng.randrange(1, 100):02d}", f"{rng.randrange(1, 10**4):04d}"]
    )


def _nino(rng: random.Random) -> str:
    number = rng.choice(["AB", "CE", "JG", "PW", "SR", "HX"]) + _digits(rng, 6) + rng.choice("ABCD")
    spaced = f"{number[:2]} {number[2:4]} {number[4:6]} {number[6:8]} {number[8]}"
    return rng.choice([number, spaced])


def _dni(rng: random.Random) -> str:
    number = _digits(rng, 8)
    return number + rng.choice(["", "-"]) + "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]


def _nir(rng: random.Random) -> str:
    year, month, _ = _date(rng)
    number = rng.choice("12") + year + month + f"{rng.randrange(1, 96):02d}" + _digits(rng, 6)
    key = f"{97 - int(number) % 97:02d}"
    parts = [number[0], number[1:3], number[3:5], number[5:7], number[7:10], number[10:13], key]
    return rng.choice(["", " "]).join(parts)


def _personnummer(rng: random.Random) -> str:
    number = _with_luhn("".join(_date(rng)) + _digits(rng, 3))
    return f"{rng.choice(['', '19'])}{number[:6]}-{number[6:]}"


def _hetu(rng: random.Random) -> str:
    year, month, day = _date(rng)
    number = day + month + year + f"{rng.randrange(2, 900):03d}"
    return f"{number[:6]}-{number[6:]}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(number) % 31]}"


def _cpf(rng: random.Random) -> str:
    number = _digits(rng, 9)
    for _ in range(2):
        rest = _weighted(number, range(len(number) + 1, 1, -1))
        number += str(0 if rest < 2 else 11 - rest)
    return f"{number[:3]}.{number[3:6]}.{number[6:9]}-{number[9:]}"


def _ric(rng: random.Random) -> str:
    year, month, day = _date(rng)
    number = rng.choice(["110101", "310104", "440305", "510107"]) + "19" + year + month + day + _digits(rng, 3)
    return number + "10X98765432"[_weighted(number, [2**place % 11 for place in range(17, 0, -1)])]


_NATIONAL = (_ssn, _ssn, _nino, _dni, _nir, _personnummer, _hetu, _cpf, _ric)


def _national_number(rng: random.Random) -> str:
    return rng.choice(_NATIONAL)(rng)


def _ip_address(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return (
            ".".join(str(rng.choice([rng.randrange(10, 256), rng.randrange(256)])) for _ in range(3))
            + f".{rng.randrange(10, 256)}"
        )
    groups = [f"{rng.randrange(1, 65536):x}" for _ in range(7)]
    return rng.choice(
        [
            ":".join(["2001", *groups]),
            f"2001:db8::{groups[0]}:{groups[1]}",
            f"fe80::{groups[0]}:{groups[1]}:{groups[2]}",
            ":".join(["2001", "0db8", *(group.zfill(4) for group in groups[:6])]).upper(),
        ]
    )


def _url_credentials(rng: random.Random) -> str:
    scheme = rng.choice(["https", "http", "ftp", "postgres", "mongodb+srv", "redis", "amqp"])
    password = "".join(rng.choices(string.ascii_letters + string.digits + "!$%*_-.~", k=rng.randrange(4, 20)))
    port, path = rng.choice(["", ":8443"]), rng.choice(["", "/", "/data/base", "/a?b=c&d=1"])
    return f"{scheme}://{rng.choice(_NAMES)}:{password}@{rng.choice(_HOSTS)}{port}{path}"


_MAKERS: dict[PersonalData, Callable[[random.Random], str]] = {
    "email": _email,
    "telephone": _telephone,
    "card": _card,
    "bank_account": _iban,
    "national_number": _national_number,
    "ip_address": _ip_address,
    "url_credentials": _url_credentials,
}
