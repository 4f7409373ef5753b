"""Cleaning: small pure steps between a decoded record and its codec.

`read_lists` and `make_cleaner` run on the driver; the cleaner runs in Ray Data's workers, on one raw record at a time.
"""

from __future__ import annotations

from pipeline.data.cleaning.cleaner import REASONS, Cleaned, Cleaner, make_cleaner
from pipeline.data.cleaning.lists import BlockList, Lists, OptOut, read_block_list, read_lists, read_opt_out
from pipeline.data.cleaning.personal_data import Finding, find_personal_data, mask, mask_personal_data

__all__ = [
    "REASONS",
    "BlockList",
    "Cleaned",
    "Cleaner",
    "Finding",
    "Lists",
    "OptOut",
    "find_personal_data",
    "make_cleaner",
    "mask",
    "mask_personal_data",
    "read_block_list",
    "read_lists",
    "read_opt_out",
]
