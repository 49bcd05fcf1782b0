"""Columns with one value per item, held so that ten million items fit and workers share them.

A list of ten million `str` takes over a gigabyte, and reading it touches the reference count of
every element, so that each forked worker ends up with a copy of its own. Flat tensors have no such
counts, and where workers are spawned, `torch.multiprocessing` hands tensors over in shared memory.
"""

from __future__ import annotations

import itertools
import operator
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
Column = Sequence[Any] | Tensor
"""One value per item: a `StringTable`, a tensor (N, ...), or a list of anything."""

BLOCK = 1024  # strings that share one stored prefix


def chunks(items: Iterable[T], length: int) -> Iterator[list[T]]:
    """Lists of `length` consecutive items; the last one may be shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, length)):
        yield chunk


class StringTable(Sequence[str]):
    """An immutable sequence of strings in flat memory.

    Each takes 8 bytes plus what it does not share with its block of neighbors, which for paths is
    little more than the file's name. Strings that are no valid Unicode are kept as well: names of
    files, and halves of surrogate pairs, which JSON may have.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        rests, ends = bytearray(), array("q", [0])
        self._prefixes: list[bytes] = []
        for block in chunks(strings, BLOCK):
            encoded = [string.encode("utf-8", "surrogatepass") for string in block]
            prefix = os.path.commonprefix(encoded) or b""
            self._prefixes.append(prefix)
            for string in encoded:
                rests += string[len(prefix) :]
                ends.append(len(rests))
        self._rests = _tensor(rests, torch.uint8)
        self._ends = _tensor(ends, torch.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: SupportsIndex) -> str:  # type: ignore[override]  # no slices
        number = range(len(self))[operator.index(index)]
        # Arrays are several times as fast to index. None is kept: handing the tensors to a spawned
        # process moves them into shared memory, and frees what an earlier array would look at.
        rests, ends = self._rests.numpy(), self._ends.numpy()
        rest = rests[ends[number] : ends[number + 1]].tobytes()
        return (self._prefixes[number // BLOCK] + rest).decode("utf-8", "surrogatepass")


def _tensor(buffer: bytearray | array[int], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(buffer, dtype=dtype) if len(buffer) else torch.empty(0, dtype=dtype)


def column(values: Column | Iterable[Any]) -> Column:
    """`values`, one per item, in the most compact form that gives the same values back."""
    if isinstance(values, StringTable | Tensor):
        return values
    values = values if isinstance(values, np.ndarray) else list(values)
    if len(values) and all(isinstance(value, str) for value in values):
        return StringTable(values)
    if all(isinstance(value, bool | int | float | np.generic | np.ndarray) for value in values):
        return torch.as_tensor(np.array(values))
    return list(values)


def entry(values: Column, index: int) -> Any:
    """Item `index` of a column: numbers as plain ones, as collating tensors would share memory."""
    value = values[index]
    if isinstance(value, Tensor):
        return value.item() if value.dim() == 0 else value.numpy().copy()
    return value
