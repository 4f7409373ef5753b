"""What processes of tests begin with: imported once, in the process that they are forked from (`two_processes.py`), and
in pytest's own; no collection of garbage goes through it again."""

# ruff: noqa: F401

import gc

import torch._dynamo  # the first optimizer imports it

import pipeline.training.session
import tests.conftest

gc.collect()
gc.freeze()
