"""Files that users name: their `~`, and that they are files.

A named pipe would be waited for, and some devices never end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TypeVar

AnyPath = TypeVar("AnyPath", str, Path)
YAMLS = (".yaml", ".yml")
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def special_kind(path: str | os.PathLike[str]) -> str:
    """What is at `path`, also through links, if it can be read without being a file; else empty.

    Raises OSError where there is nothing.
    """
    return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "")


def regular(path: AnyPath) -> AnyPath:
    """`path`, to be opened.

    Raises:
        OSError: if there is nothing, or a pipe, a socket or a device.
    """
    if kind := special_kind(path):
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    return path


def with_home(path: AnyPath) -> AnyPath:
    """A path whose `~`, or `~user` if there is such a user, is replaced as a shell does."""
    try:
        return type(path)(os.path.expanduser(path))
    except ValueError:  # a null character, or half of a surrogate pair
        return path


def yamls_in(folder: Path) -> list[Path]:
    """The YAMLs in a folder, by name; none in one that does not exist."""
    return sorted(path for path in folder.glob("*") if path.suffix in YAMLS)


def read_text(path: str | Path, encoding: str = "utf-8-sig") -> str:
    """The text of a regular file; raises OSError, and ValueError for another encoding.

    By default that is UTF-8, also with the mark at its beginning that Windows' programs write.
    """
    return regular(Path(path)).read_text(encoding)
