"""Rows of features in a temporary file, so that memory does not grow with the images."""

from __future__ import annotations

import tempfile

import numpy as np

from taming.atomic_files import user_cache
from taming.errors import UserError, reason_of
from taming.user_files import read_at

ROWS_AT_ONCE = 4096  # that are copied from one file to another


class FeatureFile:
    """Rows of `width` numbers, float32, in a file that is gone with this object or its process.

    It is in the folder of the caches, as temporary folders may themselves be in memory; raises
    UserError if it cannot be written there.
    """

    def __init__(self, width: int) -> None:
        self.width, self.count = width, 0
        self.folder = user_cache() / "taming" / "evaluation"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # It stays open as long as there is this object.
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._refusal(error) from None

    def append(self, rows: np.ndarray) -> None:
        """Add rows [B, width]."""
        content = np.ascontiguousarray(rows, np.float32).data.cast("B")
        try:
            while len(content):
                content = content[self._file.write(content) :]
        except OSError as error:
            raise self._refusal(error) from None
        self.count += len(rows)

    def rows(self) -> np.ndarray:
        """All of them [count, width], mapped into memory: the system reads what is looked at, and
        may forget it again. Writing into the array changes nothing in the file."""
        if not self.count:
            return np.zeros((0, self.width), np.float32)
        return np.memmap(self._file, np.float32, "c", shape=(self.count, self.width))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` [stop - start, width], in memory of their own."""
        rows = np.empty((min(stop, self.count) - start, self.width), np.float32)
        read_at(self._file, rows.data.cast("B"), start * self.width * rows.itemsize)
        return rows

    def in_order(self, order: np.ndarray) -> FeatureFile:
        """Another file, whose n-th row is row `order[n]` of this one."""
        sorted_file, rows = FeatureFile(self.width), self.rows()
        for start in range(0, len(order), ROWS_AT_ONCE):
            sorted_file.append(rows[order[start : start + ROWS_AT_ONCE]])
        return sorted_file

    def _refusal(self, error: OSError) -> UserError:
        return UserError(
            f"features of {self.count} images and more cannot be kept in {self.folder} "
            f"({reason_of(error)}); make room there, or name another folder by XDG_CACHE_HOME"
        )
