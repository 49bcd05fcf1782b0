"""The image files of a folder: their order, their classes, and hashes of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

EXTENSIONS = ("png", "jpg", "jpeg")  # torch-fidelity's


def image_files(folder: Path, deep: bool) -> list[str]:
    """Real paths of the image files in a folder, and with `deep` below it, sorted as text."""
    paths = []
    for parent, below, names in os.walk(folder):
        below[:] = [name for name in below if deep and not name.startswith(".")]
        for name in names:
            ending = os.path.splitext(name)[1].lower().removeprefix(".")
            if ending in EXTENSIONS and not name.startswith("."):
                paths.append(os.path.realpath(os.path.join(parent, name)))
    return sorted(paths)


def folder_labels(root: Path, files: Sequence[str]) -> list[int] | None:
    """The class of each file by its folder's name; None if some are in `root` itself."""
    parents = [os.path.dirname(path) for path in files]
    if os.path.realpath(root) in parents:
        return None
    names = [os.path.basename(parent) for parent in parents]
    if all(name.isdecimal() for name in set(names)):
        return [int(name) for name in names]
    places = {name: place for place, name in enumerate(sorted(set(names)))}
    return [places[name] for name in names]


def file_digest(path: str) -> bytes:
    """SHA-256 of a file's bytes, read once for each version of it."""
    try:
        status = os.stat(path)
        return _version_digest(path, status.st_mtime_ns, status.st_size)
    except OSError:  # it counts as damaged when it is loaded
        return hashlib.sha256(f"unreadable: {path}".encode(errors="surrogateescape")).digest()


@cache
def _version_digest(path: str, changed: int, size: int) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
