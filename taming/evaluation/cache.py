"""States of accumulators that were computed before, found again by the content of the images.

Files are in `$XDG_CACHE_HOME/taming/evaluation` (`~/.cache` without that variable). Their names are
hashes of all that decides what is in them; there is nothing to invalidate, and all may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taming.atomic_files import atomic_path
from taming.errors import UserError

State = dict[str, np.ndarray]

SAVE_EVERY = 30.0  # seconds between the saves of an unfinished evaluation ...
SHARE_OF_TIME = 0.05  # ... which may take this share of the time at most
log = logging.getLogger(__name__)


def key_of(**parts: Any) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def cache_folder() -> Path:
    """Where cached states are by default."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "taming" / "evaluation"


class Cache:
    """States (dicts of arrays) by key, one file each.

    Args:
        folder: `cache_folder()` by default.
        enabled: without it nothing is found, and nothing is kept.
    """

    def __init__(self, folder: Path | None = None, enabled: bool = True) -> None:
        self.folder, self.enabled = folder or cache_folder(), enabled

    def load(self, key: str) -> State | None:
        """None if there is no state, or a damaged one."""
        return self._read(self.folder / f"{key}.npz") if self.enabled else None

    def save(self, key: str, state: Mapping[str, np.ndarray]) -> None:
        """Keep a state; a file is either complete or not there."""
        if self.enabled:
            self._write(self.folder / f"{key}.npz", state)

    def parts(self, key: str) -> list[State]:
        """The states of all processes that worked on `key` and did not finish."""
        if not self.enabled:
            return []
        states = [self._read(path) for path in sorted(self.folder.glob(f"{key}.partial.*.npz"))]
        return [state for state in states if state is not None]

    def save_part(self, key: str, rank: int, state: Mapping[str, np.ndarray]) -> None:
        """Keep what process `rank` has so far."""
        if self.enabled:
            self._write(self.folder / f"{key}.partial.{rank}.npz", state)

    def delete_parts(self, key: str, but: int | None = None) -> None:
        """Delete the unfinished states of `key`, except the one of process `but`."""
        for path in self.folder.glob(f"{key}.partial.*.npz"):
            if path.name != f"{key}.partial.{but}.npz":
                path.unlink(missing_ok=True)

    def _read(self, path: Path) -> State | None:
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged and computed anew (%s)", path, error)
            return None

    def _write(self, path: Path, state: Mapping[str, np.ndarray]) -> None:
        try:
            with atomic_path(path) as partial, partial.open("wb") as file:
                np.savez(file, **state)  # type: ignore[arg-type]
        except UserError as error:
            log.warning("%s; nothing is kept", error)


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
