"""What the tests of training share."""

from __future__ import annotations

from importlib import import_module

import pytest


@pytest.fixture(scope="session", autouse=True)
def collections_leave_out_what_is_imported() -> None:
    """Thawing and a want of memory collect garbage, which goes through all that PyTorch has made: 0.1 to 0.3 s each."""
    import_module("tests.training.preloaded")
