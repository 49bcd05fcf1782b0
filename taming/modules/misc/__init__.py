"""Condition stages without weights."""
