"""What the processes of a loader are reading, in shared memory: named if one of them hangs."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import get_worker_info

_LONGEST = 1024  # bytes of a text


class Readings:
    """For each process of a loader: the item it loads, the file it opened last for it, since when.

    Args:
        processes: loader processes; 0 if the main process loads.
    """

    def __init__(self, processes: int) -> None:
        self._texts = torch.zeros(max(processes, 1), _LONGEST, dtype=torch.uint8).share_memory_()
        self._since = torch.zeros(max(processes, 1), dtype=torch.float64).share_memory_()

    @contextmanager
    def item(self, index: int) -> Iterator[None]:
        """Around the loading of an item, in the process that loads it."""
        _note_opened_files()
        worker = get_worker_info()
        slot = worker.id if worker is not None else 0
        self._write(slot, f"item {index}")
        try:
            _open_in[:] = [(self, slot, index)]
            self._since[slot] = time.monotonic()
            yield
        finally:
            self._since[slot] = 0
            _open_in.clear()

    def _write(self, slot: int, text: str) -> None:
        content = text.encode("utf-8", "backslashreplace")[:_LONGEST].ljust(_LONGEST, b"\0")
        self._texts[slot] = torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def opened(self, slot: int, index: int, path: str) -> None:
        """A file was opened for an item."""
        self._write(slot, f"item {index}, {path}")

    def longest(self) -> tuple[float, str] | None:
        """Seconds that the slowest item has taken so far, and what is read; None if none is."""
        # Copied first: an item may end at any moment, and its 0 would look like hours.
        begun = [(since, slot) for slot, since in enumerate(self._since.tolist()) if since > 0]
        if not begun:
            return None
        since, slot = min(begun)
        text = bytes(self._texts[slot].tolist()).rstrip(b"\0")
        return time.monotonic() - since, text.decode("utf-8", "replace")


_open_in: list[tuple[Readings, int, int]] = []  # the item that this process loads


@functools.cache  # hooks are never removed, and forked processes have them, too
def _note_opened_files() -> None:
    """Hear of the files that this process opens, whatever opens them."""
    sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _open_in and isinstance(arguments[0], str):
        readings, slot, index = _open_in[0]
        readings.opened(slot, index, arguments[0])
