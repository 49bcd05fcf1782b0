"""States of finished and unfinished evaluations as files.

They are in `$XDG_CACHE_HOME/taming/evaluation` (`~/.cache` without that variable). The files' names
are hashes of all that decides what is in them; there is nothing to invalidate, and all may be
deleted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from taming.atomic_files import atomic_path, user_cache
from taming.errors import UserError
from taming.evaluation.metrics.statistics_file import NOT_READ, array_of
from taming.evaluation.sources.images import State

SAVE_EVERY = 30.0  # seconds between the saves of an unfinished evaluation ...
SHARE_OF_TIME = 0.05  # ... which may take this share of the time at most
log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where cached states are by default."""
    return user_cache() / "taming" / "evaluation"


class Cache:
    """States (dicts of arrays) by key, one file each; nothing is found or kept if not `enabled`."""

    def __init__(self, folder: Path | None = None, enabled: bool = True) -> None:
        self.folder, self.enabled = folder or cache_folder(), enabled

    def load(self, key: str) -> State | None:
        """None if there is no state, or a damaged one."""
        return self._read(self.folder / f"{key}.npz") if self.enabled else None

    def save(self, key: str, state: Mapping[str, np.ndarray]) -> None:
        """Keep a state; a file is either complete or not there."""
        if not self.enabled:
            return
        try:
            with atomic_path(self.folder / f"{key}.npz") as partial, partial.open("wb") as file:
                np.savez(file, **state)  # type: ignore[arg-type]
        except UserError as error:
            log.warning("%s; nothing is kept", error)

    def save_part(self, key: str, rank: int, state: Mapping[str, np.ndarray]) -> None:
        """Keep what process `rank` has so far."""
        self.save(f"{key}.partial.{rank}", state)

    def parts(self, key: str) -> list[State]:
        """The states of all processes that worked on `key` and did not finish."""
        paths = sorted(self.folder.glob(f"{key}.partial.*.npz")) if self.enabled else []
        return [state for path in paths if (state := self._read(path)) is not None]

    def delete_parts(self, key: str, but: int | None = None) -> None:
        """Delete the unfinished states of `key`, except the one of process `but`."""
        for path in self.folder.glob(f"{key}.partial.*.npz"):
            if path.name != f"{key}.partial.{but}.npz":
                path.unlink(missing_ok=True)

    def _read(self, path: Path) -> State | None:
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: array_of(file, name) for name in file.files}
        except (FileNotFoundError, NotADirectoryError):
            return None
        except NOT_READ as error:
            log.warning("%s is damaged and computed anew (%s)", path, error)
            return None


class Timer:
    """When to save next: not too often, and more rarely if saving takes long."""

    def __init__(self, every: float = SAVE_EVERY) -> None:
        self.every, self.wait = every, every
        self.last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.wait

    def saved(self, seconds: float) -> None:
        """Record how long the last save took."""
        self.last = time.monotonic()
        self.wait = max(self.every, seconds / SHARE_OF_TIME) if self.every else 0.0
