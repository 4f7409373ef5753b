"""Personal data in texts: finding it and masking it by its kind in brackets.

Plain Python in Ray Data's workers. What is found is what the form tells: names and street addresses are not looked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, get_args

from pipeline.data.cleaning.accounts import bank_accounts, cards
from pipeline.data.cleaning.addresses import emails, ip_addresses, urls_with_credentials
from pipeline.data.cleaning.digits import Searched, Span, number_blocks, plain_text
from pipeline.data.cleaning.national_numbers import national_numbers
from pipeline.data.cleaning.telephones import telephones
from pipeline.spec.data import PersonalData


class Finding(NamedTuple):
    """Personal data of a kind at `text[start:end]`."""

    kind: PersonalData
    start: int
    end: int


# In order of how specific they are: the first is the kind of what several find.
FINDERS: dict[PersonalData, Callable[[Searched], Iterator[Span]]] = {
    "url_credentials": urls_with_credentials,
    "bank_account": bank_accounts,
    "card": cards,
    "national_number": national_numbers,
    "ip_address": ip_addresses,
    "email": emails,
    "telephone": telephones,
}
IN_BLOCKS: frozenset[PersonalData] = frozenset({"bank_account", "card", "national_number", "telephone"})
"""Kinds that are looked for around numbers only."""
_RANK = {kind: rank for rank, kind in enumerate(FINDERS)}

MASKS: dict[PersonalData, str] = {kind: f"[{kind.replace('_', ' ')}]" for kind in FINDERS}
"""What stands for each kind: `[email]`, `[telephone]`, `[card]`, `[bank account]`, …"""

ALL_KINDS: tuple[PersonalData, ...] = get_args(PersonalData)


def find_personal_data(text: str, kinds: Iterable[PersonalData] = ALL_KINDS) -> list[Finding]:
    """Personal data of these kinds in `text`, in order and apart from each other.

    What overlaps is one finding over all of it, so that nothing found stays, of the most specific of the kinds.
    """
    plain = plain_text(text)
    searched = Searched(plain, number_blocks(plain))
    # Most texts have no numbers, and then four of the finders have nowhere to look.
    wanted = kinds if searched.blocks else (kind for kind in kinds if kind not in IN_BLOCKS)
    return _apart([Finding(kind, *span) for kind in wanted for span in FINDERS[kind](searched)])


def _apart(findings: list[Finding]) -> list[Finding]:
    apart: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: finding.start):
        if apart and finding.start < apart[-1].end:
            last = apart.pop()
            finding = Finding(
                min(last.kind, finding.kind, key=_RANK.__getitem__), last.start, max(last.end, finding.end)
            )
        apart.append(finding)
    return apart


def mask(text: str, findings: Sequence[Finding]) -> str:
    """`text` with each finding replaced by its kind in brackets."""
    parts, reached = [], 0
    for finding in findings:
        parts += [text[reached : finding.start], MASKS[finding.kind]]
        reached = finding.end
    return "".join([*parts, text[reached:]])


def mask_personal_data(text: str, kinds: Iterable[PersonalData] = ALL_KINDS) -> tuple[str, dict[str, int]]:
    """`text` with all that is found masked, and how many of each kind.

    It looks again after masking, until nothing is found: what was taken away may have hidden what stood beside it.
    """
    kinds = tuple(kinds)
    counts: Counter[str] = Counter()
    while findings := find_personal_data(text, kinds):
        counts.update(finding.kind for finding in findings)
        text = mask(text, findings)
    return text, dict(counts)
