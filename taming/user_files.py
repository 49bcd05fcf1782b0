"""Files that users name: their `~`, and that they are files.

A named pipe would be waited for, and some devices never end.
"""

from __future__ import annotations

import errno
import lzma
import os
import stat
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO, TypeVar

AnyPath = TypeVar("AnyPath", str, Path)
YAMLS = (".yaml", ".yml")
# What Python's modules raise for archives that are damaged or cut short; RuntimeErrors are of zips
# that are encrypted, or packed in a way that Python does not know.
DAMAGED_ARCHIVE: tuple[type[Exception], ...] = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
)
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


_READING = threading.Lock()  # a file's position, which threads share


def read_at(file: IO[bytes], memory: memoryview, place: int) -> int:
    """Read bytes of an open file from a place on into memory; how many, fewer only at its end.

    Unlike seek and read this needs no position, which threads and forked workers would share, but
    on Windows and older Macs, which have no such call and fork no workers.
    """
    read = 0
    while read < len(memory):
        part = memory[read:]
        if hasattr(os, "preadv"):
            done = os.preadv(file.fileno(), [part], place + read)
        else:
            done = _read_from(file, part, place + read)
        if not done:
            break
        read += done
    return read


def _read_from(file: IO[bytes], memory: memoryview, place: int) -> int:
    with _READING:
        before = file.tell()
        file.seek(place)
        content = file.read(len(memory))
        file.seek(before)
    memory[: len(content)] = content
    return len(content)


def with_home(path: AnyPath) -> AnyPath:
    """A path whose `~`, or `~user` if there is such a user, is replaced as a shell does."""
    try:
        return type(path)(os.path.expanduser(path))
    except ValueError:  # a null character, or half of a surrogate pair
        return path


def word_with_home(word: str) -> str:
    """`~` at the beginning of a word, or of `--flag=value`, as a shell replaces it in a word."""
    flag, equals, value = word.partition("=")
    if word.startswith("--") and equals:
        return f"{flag}={with_home(value)}"
    return with_home(word)


def name_and_file(text: str) -> tuple[str, str]:
    """`resnet18` and `/home/ada/w.pth` of `resnet18:~/w.pth`, where a shell replaces no `~`; the
    second is empty without a colon."""
    name, _, file = text.partition(":")
    return name, with_home(file)


def visible_in(folder: Path, pattern: str = "*") -> list[Path]:
    """What is in a folder, by name, without what is hidden, such as `._a.yaml`, which Macs put
    beside `a.yaml` on other systems' disks. Nothing is in a folder that is not there."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def yamls_in(folder: Path) -> list[Path]:
    """The YAMLs in a folder, by name."""
    return [path for path in visible_in(folder) if path.suffix in YAMLS]


def read_text(path: str | Path, encoding: str = "utf-8-sig") -> str:
    """The text of a regular file; raises OSError, and ValueError for another encoding.

    By default that is UTF-8, also with the mark at its beginning that Windows' programs write.
    """
    return regular(Path(path)).read_text(encoding)


def file_version(path: str | os.PathLike[str]) -> tuple[int, int]:
    """A file's size in bytes and the time of its last change in ns: another one tells that its
    content has changed, without reading it.

    Raises OSError where there is nothing.
    """
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
