"""Benchmarks: run by hand, print figures, assert nothing."""
