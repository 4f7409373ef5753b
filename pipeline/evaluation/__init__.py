"""Evaluation: how good a model is, as scores that carry how they were taken."""
