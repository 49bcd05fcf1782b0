"""The page of `scripts/sample_conditional.py`: choose a run, paint or pick a condition, draw."""
