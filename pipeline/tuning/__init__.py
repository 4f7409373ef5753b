"""Tuning: a campaign of trials over a space of spec keys, and its winner."""
