"""Imports of thousands of modules, which take seconds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def many_imports(of_command: bool = False) -> Iterator[None]:
    """Look for no garbage in this block, which imports torch or Lightning.

    They make nearly a million objects, which stay. Python looks through all of them again and again
    while they become more, which is a quarter of the time, and finds nothing to free.

    Args:
        of_command: the process is a command, and this is where it begins: its objects are not
            looked through later either, nor at its end, which is a second.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if of_command:
            gc.freeze()
        if was_on:
            gc.enable()
