"""Finding e-mail addresses, network addresses, and URLs that carry credentials.

Each finder jumps from one rare sign ('@', '://', ':') to the next and looks around it, so prose costs little.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from pipeline.data.cleaning.digits import Searched, Span, has_digits
from pipeline.data.cleaning.words import UNSPACED

_FILE_ENDINGS = frozenset({"css", "gif", "html", "jpeg", "jpg", "js", "png", "svg", "webp"})
"""No top-level domains: `icon@2x.png` is a file."""

_ASCII_DOMAIN = re.compile(
    r"@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}([A-Za-z]{2,24}|xn--[A-Za-z0-9-]{2,59})(?![A-Za-z0-9-]|\.[A-Za-z0-9])"
    r"|@\[[0-9.]{7,15}\]"
)
_ANY_DOMAIN = re.compile(
    rf"@(?:[^\W_](?:[^\W_]|-){{0,62}}\.){{1,8}}((?:[^\W\d_{UNSPACED}]){{2,24}}|[{UNSPACED}]{{2,3}})"
)
# Backwards from the '@': a local part ends with a letter or digit, or is in quotes. Scripts without spaces are left
# out of it: what stands before an address in Chinese is the sentence.
_LOCAL_BACKWARDS = re.compile(rf"(?:[^\W{UNSPACED}]|[.+%'~!#$&*^-]){{0,63}}(?:[^\W{UNSPACED}])|\"[^\"\n@]{{1,62}}\"")
_DISGUISED = re.compile(
    r"[\w.+-]{1,64}\s?[\[(]\s?at\s?[\])]\s?[\w-]{1,63}(?:(?:\.|\s?[\[(]\s?dot\s?[\])]\s?)[\w-]{2,63}){1,4}",
    re.IGNORECASE,
)
_DISGUISES = ("(at)", "[at]", "(AT)", "[AT]", "( at )", "[ at ]")

_USER_AND_HOST = re.compile(r"://([^\s/?<>\"]*)@[^\s<>\"]+")
_SCHEME_BACKWARDS = re.compile(r"[A-Za-z0-9+.-]{0,20}[A-Za-z]")
_CLOSING = ".,;:!?)]}'"

_IPV4 = re.compile(
    r"(?<![A-Za-z0-9])(?<![0-9][.:-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![A-Za-z0-9])(?!\.[0-9]|-[A-Za-z])", re.ASCII
)
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|version|release|build|firmware|driver|section|chapter|paragraph|clause|figure|table)|§)[.:]?\s*$",
    re.IGNORECASE,
)
ADDRESS_WORDS = """
    ip ips ipv4 address addresses addr host hosts server gateway dns ping ssh client router proxy login from subnet
"""
_ADDRESS_WORDS = frozenset(ADDRESS_WORDS.split())
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6_CHARACTERS = frozenset("0123456789abcdefABCDEF:.")


def emails(searched: Searched) -> Iterator[Span]:
    """E-mail addresses: `local@domain.tld`, also international, and `local [at] domain [dot] tld`."""
    text = searched.text
    at = text.find("@")
    while at >= 0:
        domain = _ASCII_DOMAIN.match(text, at) or _ANY_DOMAIN.match(text, at)
        local = _LOCAL_BACKWARDS.match(text[max(0, at - 64) : at][::-1])
        if domain and local and (domain[1] or "").lower() not in _FILE_ENDINGS:
            yield at - local.end(), domain.end()
        at = text.find("@", at + 1)
    if ("(" in text or "[" in text) and any(disguise in text for disguise in _DISGUISES):
        yield from (match.span() for match in _DISGUISED.finditer(text))


def urls_with_credentials(searched: Searched) -> Iterator[Span]:
    """Whole URLs with a password (`https://user:password@host/path`), or a token of 16 characters or more, before the
    host."""
    text = searched.text
    if "://" not in text or "@" not in text:
        return
    for match in _USER_AND_HOST.finditer(text):
        scheme = _SCHEME_BACKWARDS.match(text[max(0, match.start() - 21) : match.start()][::-1])
        _, colon, password = match[1].partition(":")
        if scheme and (password if colon else len(match[1]) >= 16):
            end = match.end()
            while text[end - 1] in _CLOSING:
                end -= 1
            yield match.start() - scheme.end(), end


def ip_addresses(searched: Searched) -> Iterator[Span]:
    """IPv4 and IPv6 addresses that `ipaddress` takes.

    Four numbers with dots are a version or a section, not an address, after a word such as `version` or a `v`, or when
    all four have one digit (`1.2.3.4`) and neither a word such as `address` or `host` stands before nor a port or
    prefix length follows. An IPv6 address has a digit and at least two groups (`12:30:45` and `std::string` are none).
    """
    text = searched.text
    for match in searched.matches(_IPV4):
        if not _is_address(match[0]) or _VERSION_BEFORE.search(searched.before(match.start())):
            continue
        follows = text[match.end() : match.end() + 2]
        followed = follows[:1] in (":", "/") and follows[1:].isdigit()
        if len(match[0]) > 7 or followed or searched.words_before(match.start()) & _ADDRESS_WORDS:
            yield match.span()
    if ":" in text and has_digits(text):
        yield from _ipv6_addresses(text)


def _ipv6_addresses(text: str) -> Iterator[Span]:
    reached = 0
    for match in _COLONS.finditer(text):
        if match.start() < reached:
            continue
        start, end = match.span()
        while start > reached and match.start() - start < 40 and text[start - 1] in _IPV6_CHARACTERS:
            start -= 1
        while end < len(text) and end - match.end() < 45 and text[end] in _IPV6_CHARACTERS:
            end += 1
        reached = end
        stop = end
        while stop > start and (text[stop - 1] == "." or (text[stop - 1] == ":" and text[stop - 2] != ":")):
            stop -= 1
        address = text[start:stop]
        alone = not (start and (text[start - 1].isalnum() or text[start - 1] in "_:")) and not (
            end < len(text) and (text[end].isalnum() or text[end] == "_")
        )
        groups = sum(map(bool, address.split(":")))
        if alone and groups >= 2 and has_digits(address) and _is_address(address):
            yield start, stop


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
