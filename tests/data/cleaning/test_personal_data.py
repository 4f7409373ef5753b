"""Personal data: what is found and what is let alone, against tables, planted items and clean prose."""

from __future__ import annotations

import json
import lzma
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.cleaning.personal_data import ALL_KINDS, MASKS, find_personal_data, mask, mask_personal_data
from pipeline.spec.data import PersonalData
from tests.conftest import SHARED_DATA
from tests.planted import personal_items, plant

# What is in braces is what must be masked.
TRUE: dict[PersonalData, tuple[str, ...]] = {
    "email": (
        "mail {john.doe@example.com}.",
        "ask {o'neil@x.co.uk}, please",
        "<{a+b@sub.example.org}>",
        "mailto:{x_y-z@example.io}",
        "{ADA@EXAMPLE.COM}\n",
        "'{quoted@example.net}'",
        "邮箱{test@example.com}请联系",
        "{josé@münchen.de}",
        "{user@[192.168.2.1]}",
        '{"john doe"@example.com}',
        "write to {john [at] example [dot] com}",
        "write to {john (at) example.com}",
        "?email={first@example.com}&x=1",
        "{ｘ＠example.com}",
        "{n@xn--bcher-kva.example}!",
    ),
    "telephone": (
        "call {408-247-8880}.",
        "it is {(212) 415-5788}",
        "{+1 718-388-4433} and the address",
        "{1-800-555-0199}",
        "{408.247.8880 x12}",
        "{+44 (0)20 7946 0958}, or",
        "{07700 900123}",
        "{(0161) 496 0123}",
        "{0044 20 7946 0958}",
        "{030/1234567}",
        "{01 23 45 67 89}",
        "{+33 1 49 52 99 70}",
        "{612 34 56 78}",
        "{8 (495) 123-45-67}",
        "{(11) 91234-5678}",
        "電話：{090-1234-5678}",
        "{138 1234 5678}",
        "电话{13812345678}",
        "{98765 43210}",
        "my tel is {4082478880}",
        "Phone: {555-0134}",
        "Handy: {0171 1234567}",
        "Their number is {1793 414926}.",
        "contacting them at {1 40 62 05 00}",
        "{+49\u00a030\u00a01234567}",
        "{408\u2013247\u20138880}",
        "هاتف {+٢٠ ١٠٠ ١٢٣ ٤٥٦٧}",
    ),
    "card": (
        "{4111 1111 1111 1111}",
        "{4111111111111111} 123",
        "{5500-0000-0000-0004}.",
        "{3782 822463 10005}",
        "{378282246310005}",
        "{6011 1111 1111 1117},",
        "{3056 930902 5904}",
        "{3530111333300000}",
        "{2223003122003222}",
        "{6200000000000005}",
        "{41111111 11111111}",
        "card {4222222222222}",
        "Visa: {41 11 11 11 11 11 11 11}",
        "信用卡 {4111 1111 1111 1111}",
        "{4000\u00a00566\u00a05566\u00a05556}",
    ),
    "bank_account": (
        "{GB29 NWBK 6016 1331 9268 19} AND",
        "{GB29NWBK60161331926819}",
        "{DE89 3704 0044 0532 0130 00}.",
        "{de89370400440532013000}",
        "{FR14 2004 1010 0505 0001 3M02 606}",
        "{NL91ABNA0417164300}",
        "{ES91 2100 0418 4502 0005 1332}",
        "{CH93-0076-2011-6238-5295-7}",
        "{MT84 MALT 0110 0001 2345 MTLC AST0 01S}",
        "{NO93 8601 1117 947},",
        "{BE68 5390 0754 7034}",
        "{SC18SSCB11010000000000001497USD}",
        "IBAN:{PL61 1090 1014 0000 0712 1981 2874}",
    ),
    "national_number": (
        "SSN {078-05-1120}.",
        "{219 09 9999}",
        "ssn: {219099999}",
        "{912-70-1234}",
        "{AB 12 34 56 C}",
        "{CE123456D}",
        "NHS no. {943 476 5919}",
        "{12345678Z}",
        "{X-1234567-L}",
        "{2 95 10 99 126 111 93}",
        "{295109912611193}",
        "{RSSMRA85T10A562S}",
        "{36 574 261 809}",
        "BSN {111222333}",
        "PESEL {44051401359}",
        "{880320-0016}",
        "{131052-308T}",
        "{390.533.447-05}",
        "{11010519491231002X}",
        "{971013-9019902}",
        "{BOXW310820HNERXN09}",
        "social insurance: {123-456-782}",
        "Aadhaar {2341 2341 2346}",
        "{ACUPA7085R}",
        "{7503305044089}",
    ),
    "ip_address": (
        "from {192.168.0.1}",
        "unbuild: {24.204.172.228};",
        "({10.0.0.1}:8080)",
        "{172.16.254.3}/24",
        "{203.0.113.77}.",
        "host {8.8.8.8}",
        "ping {1.1.1.1}",
        "ip={198.51.100.2}",
        "{255.255.255.255}",
        "{2001:0db8:85a3:0000:0000:8a2e:0370:7334}",
        "{2001:db8::8a2e:370:7334},",
        "[{2001:db8::1}]:443",
        "{fe80::1ff:fe23:4567:890a}%eth0",
        "{2001:DB8::}/32",
        "{::ffff:192.0.2.128}",
        "{64:ff9b::192.0.2.33}.",
    ),
    "url_credentials": (
        "{https://user:pass@example.com/path?x=1},",
        "({http://a:b@host})",
        "{postgres://app:s3cr%40t@db:5432/main}",
        "{redis://:hunter2@cache:6379/0}",
        "{mongodb+srv://u:p@cluster0.example.net/?retry=true}",
        "{ftp://bob:p@ss@files.example.org}",
        '"{https://bob:x@10.0.0.1:8443/}"',
        "{https://ghp_0123456789abcdef@github.com/o/r.git}",
        "{HTTPS://USER:PASS@EXAMPLE.COM}!",
        "{amqp://guest:guest@localhost}",
        "{ssh://git:token@git.example.com/x.git}.",
        "see <{https://user:p-a_s.s~@example.com}>",
    ),
}

FALSE: dict[PersonalData, tuple[str, ...]] = {
    "email": (
        "@media screen",
        "icon@2x.png",
        "react@18.2.0",
        "me @ home.com",
        "@handle wrote",
        "user@localhost",
        "a@b",
        "5 @ $3.00",
        "x@.com",
        "C@T",
        "(at) the door",
        "look [at] me",
        "foo@bar_baz",
    ),
    "telephone": (
        "in 1999-2000",
        "1,234,567.89",
        "2024-01-05 12:30",
        "01.02.2003 10:30",
        "05/06/2007",
        "12:30-14:45",
        "6-4 7-5 6-3",
        "ISBN 978-0-306-40615-7",
        "ISBN 0-306-40615-2",
        "ISBN 0306406152",
        "order 302-1234567-1234567",
        "call me about order 12345678",
        "phone call on 2024-01-05",
        "the number 299 792 458",
        "order number 1234 567890",
        "number 1234567890",
        "13812345678",
        "$408.50 + 247.88",
        "94103-1234",
        "0.0123456789",
        "3.14159265358979",
        "10000000000",
        "temperature of -273.15 to 1000.50",
        "550e8400-e29b-41d4-a716-446655440000",
    ),
    "card": (
        "4111 1111 1111 1112",
        "1234567890123456",
        "9780306406157",
        "ISBN 978-3-16-148410-0",
        "4006381333931",
        "0000 0000 0000 0000",
        "order 1234-5678-9012-3456",
        "1700000000000",
        "0.4111111111111111",
        "4111.1111.1111.1111",
        "a4111111111111111",
        "41 11 11 11 11 11 11 11",
        "2014 2015 2016 2017",
        "490154203237518",
    ),
    "bank_account": (
        "GB28 NWBK 6016 1331 9268 19",
        "DE89370400440532013001",
        "AB12 CDEF 3456 7890",
        "XX89 3704 0044 0532 0130 00",
        "sha de89370400440532013000ab12",
        "US12 3456 7890 1234 5678",
        "RFC 2822 and RFC 5322 12345678901234",
        "ISO 13616 in 2007 and 2020",
        "SE35 5000",
        "PO12345678901234",
        "GB29",
        "NO93 8601 1117 948",
    ),
    "national_number": (
        "000-12-3456",
        "666-12-3456",
        "123-00-4567",
        "order 219099999",
        "GB123456A",
        "12345678A",
        "13 14 15 16 17",
        "2024-01-05",
        "131052-3081",
        "390.533.447-06",
        "11010519491231002Y",
        "302-12-3456-7890",
        "ISBN 0-306-40615-2",
        "part 123-45-6789-01",
        "44051401359",
        "2341 2341 2346",
        "v1.123-45-6789.2",
    ),
    "ip_address": (
        "version 10.2.3.4",
        "v1.22.33.44",
        "1.2.3.4",
        "section 4.10.11.12",
        "256.1.1.1",
        "1.2.3.4.5",
        "192.168.0",
        "12:30:45",
        "std::string",
        "a::b",
        "00:1A:2B:3C:4D:5E",
        "1.2.3.4-beta",
        "Chrome 99.0.4844.51",
        "10:20:30:40",
        "::",
    ),
    "url_credentials": (
        "https://example.com/path",
        "https://medium.com/@user/post",
        "ssh://git@github.com/x.git",
        "https://example.com?mail=a:b@c.de",
        "http://host:8080/",
        "mailto:john@example.com",
        "user:pass@host",
        "https://example.com/a:b@c",
        "://a:b@c",
        "https:// a:b@c",
        "https://user@example.com",
        "http://user:@example.com",
    ),
}


def cases(table: dict[PersonalData, tuple[str, ...]]) -> list[tuple[PersonalData, str]]:
    return [(kind, text) for kind, texts in table.items() for text in texts]


@pytest.mark.parametrize(("kind", "text"), cases(TRUE))
def test_what_is_in_braces_is_found_and_no_more(kind: PersonalData, text: str) -> None:
    plain = text.replace("{", "").replace("}", "")
    assert mask_personal_data(plain, (kind,))[0] == re.sub(r"\{.*\}", MASKS[kind], text)


@pytest.mark.parametrize(("kind", "text"), cases(FALSE))
def test_what_only_looks_like_it_is_let_alone(kind: PersonalData, text: str) -> None:
    assert mask_personal_data(text, (kind,)) == (text, {})


def test_the_most_specific_kind_names_what_several_find() -> None:
    text = "https://a:b@example.com, 4111 1111 1111 1111 and GB29 NWBK 6016 1331 9268 19"
    assert mask_personal_data(text)[0] == "[url credentials], [card] and [bank account]"
    assert mask_personal_data(text, ("email",))[0].startswith("https://a:[email],")


def test_findings_are_in_order_and_apart() -> None:
    documents = plant(3, personal_items(3, 40), "the quick brown fox " * 50)
    findings = find_personal_data("".join(documents))
    assert all(left.end <= right.start for left, right in zip(findings, findings[1:], strict=False))


@given(st.lists(st.sampled_from([item for _, item in personal_items(5, 40)] + [*"0189 -.,:@/+()[]\n", "tel ", "a"])))
def test_masking_a_masked_text_changes_nothing(parts: list[str]) -> None:
    once, _ = mask_personal_data("".join(parts))
    assert mask_personal_data(once) == (once, {})
    assert mask(once, []) == once


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_items_are_found_and_none_is_left(seed: int) -> None:
    prose = " ".join(
        ["It was, they said, the best of years; and yet (as ever) nobody came to see it.\nWho knows?"] * 40
    )
    items = personal_items(seed, 1000)
    found: Counter[str] = Counter()
    for (kind, item), document in zip(items, plant(seed, items, prose), strict=True):
        masked, counts = mask_personal_data(document)
        found[kind] += bool(counts.get(kind))
        assert item not in masked
        assert not re.search("[0-9]", masked), document
    assert all(found[kind] >= 0.99 * 1000 for kind in ALL_KINDS), found


def test_planted_national_and_card_numbers_are_what_the_reference_library_takes() -> None:
    from stdnum import iban, luhn

    items = personal_items(2, 300)
    assert all(luhn.is_valid(re.sub("[ -]", "", item)) for kind, item in items if kind == "card")
    assert all(iban.is_valid(item, check_country=False) for kind, item in items if kind == "bank_account")


@pytest.mark.parametrize("length", range(7, 20))
def test_few_random_numbers_are_taken_for_personal_ones(length: int) -> None:
    rng = random.Random(length)
    numbers = ["".join(rng.choices("0123456789", k=length)) for _ in range(3000)]
    counts = Counter(finding.kind for number in numbers for finding in find_personal_data(f"the parcel {number} came"))
    assert counts["national_number"] <= 0.01 * len(numbers)
    assert counts["telephone"] <= 0.005 * len(numbers)
    assert counts["card"] <= 0.04 * len(numbers)  # one check digit, and the issuers have a third of all beginnings


def corpus(name: str) -> list[str]:
    path = SHARED_DATA / "text" / name
    if not path.exists():
        pytest.skip(f"needs the real corpus {path} beside the checkout")
    if path.suffix == ".xz":
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return ["\n".join(turn["text"] for turn in row["turns"]) if "turns" in row else row["text"] for row in rows]
    return [Path(path).read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "names.txt", "coco_captions/test.txt", "tang_poems.jsonl.xz"])
def test_nothing_is_found_in_clean_prose(name: str) -> None:
    assert not [finding for text in corpus(name) for finding in find_personal_data(text)]


def test_the_telephone_numbers_of_the_dialogues_are_found_and_nothing_else() -> None:
    dialogues = corpus("dialogues.jsonl.xz")
    found = Counter(finding.kind for text in dialogues for finding in find_personal_data(text))
    assert found == {"telephone": 182}
    left = [
        line for text in dialogues for line in re.findall(r".*[0-9][0-9 ().+-]{6,}[0-9]", mask_personal_data(text)[0])
    ]
    # A street, numbers of houses, and two telephones without their trunk 0 or a word before them that tells.
    assert len(left) == 4
