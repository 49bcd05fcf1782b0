"""Whole numbers and orders drawn by Python's global generator, alike in all versions of Python.

Runs are resumed, and codes encoded, with later versions: of the generator only `random.random()` is
promised to give the same numbers there.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def number_below(end: int) -> int:
    """One of the numbers from 0 to `end` - 1."""
    return int(end * random.random())


def number_between(first: int, last: int) -> int:
    """One of the numbers from `first` to `last`."""
    return first + number_below(last - first + 1)


def shuffled(items: Iterable[T]) -> list[T]:
    """The items in an order of which all are equally likely (Fisher and Yates)."""
    order = list(items)
    for place in range(len(order) - 1, 0, -1):
        other = number_below(place + 1)
        order[place], order[other] = order[other], order[place]
    return order
