"""Faults that really happen: processes killed, disks filled, files damaged, input made up.

`tests/faults/run.py` (`make faults`) injects many at random and prints tables; the test files
inject a few, at fixed seeds. docs/reliability.md says what is promised and shows the tables.
"""
