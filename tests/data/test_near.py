"""The search of near duplicates over all rows: what it finds does not depend on how much is looked at at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data import near
from pipeline.data.duplicates import SIGNATURE_BYTES, near_pairs, num_bands
from pipeline.data.layout import Modality
from pipeline.data.parts import Part, write_part
from pipeline.data.selection import load_rows
from pipeline.storage import Store, open_store

MODALITIES: tuple[Modality, ...] = ("text", "image")


def signatures(modality: Modality) -> list[bytes]:
    """Random ones, copies of a few of them, and rows without."""
    random = np.random.default_rng(3)
    table = random.integers(0, 200, (60, SIGNATURE_BYTES[modality]), dtype=np.uint8)
    table[random.permutation(60)[:25]] = table[:25] // 20
    table[random.permutation(60)[:30]] = table[random.integers(0, 9, 30)]
    return [b"" if number % 7 == 3 else row.tobytes() for number, row in enumerate(table)]


def part_of_rows(store: Store, name: str, signed: list[bytes]) -> Part:
    rows = ({"file": 0, "index": i, "piece": 0, "record": i, "signature": each} for i, each in enumerate(signed))
    return write_part(store, {"kind": "test", "files": [[name, "digest"]]}, rows)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("at_once", [2, 7, 1000])
def test_the_pairs_are_those_of_one_table_whatever_is_held_at_once(
    modality: Modality, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ROWS_AT_ONCE", "KEYS_AT_ONCE", "PAIRS_AT_ONCE"):
        monkeypatch.setattr(near, name, at_once)
    store, signed = open_store(str(tmp_path)), signatures(modality)
    # The parts' order is not the corpus's, so that rows are written to where they belong.
    parts = [part_of_rows(store, "b", signed[33:]), part_of_rows(store, "a", signed[:33])]
    rows = load_rows(parts, [np.array([1]), np.array([0])])
    chosen = np.flatnonzero(np.arange(len(signed)) % 5 != 4)
    near.save_signatures(store, parts, rows, chosen, modality)
    there = [row for row in chosen.tolist() if signed[row]]
    table = np.stack([np.frombuffer(signed[row], np.uint8) for row in there])
    for band in range(num_bands(modality)):
        answer = near.PairStage(store, len(chosen), modality, 0.5)({"band": band})
        found = chosen[np.frombuffer(answer["pairs"], np.int64).reshape(-1, 2)]
        expected = np.array(there)[near_pairs(table, band, modality, 0.5)]
        assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))
        assert len(expected)
