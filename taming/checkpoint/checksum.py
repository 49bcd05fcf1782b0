"""A checksum at the end of checkpoints: it is their zip archive's comment, which torch ignores.

The comment is `taming crc32 xxxxxxxx`, in hexadecimal digits the CRC-32 of the file as torch wrote
it: without the comment, and with the two bytes of the comment's length still 0. Files without a
comment, such as those of other programs and of older versions, have no checksum.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import BinaryIO

from taming.errors import UserError

_MARK = b"taming crc32 "
_LENGTH = len(_MARK) + 8
# The "end of central directory" record of a zip archive: its signature, 22 bytes in all, of which
# the last two are the length of the comment that follows.
_END, _END_SIZE, _COUNT_SIZE = b"PK\x05\x06", 22, 2
_LONGEST_COMMENT = 2**16
_PART = 2**22


class DamagedFileError(UserError):
    """A checkpoint is cut short, changed or something else altogether; another one may be whole."""


class SummedFile:
    """A binary file to write to, which adds up the CRC-32 of what is written.

    Writing to it raises `OSError` as files do; `error` keeps it, as torch reports another one.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.name = file, file.name
        self.checksum = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.checksum = zlib.crc32(data, self.checksum)
        return len(data)

    def flush(self) -> None:
        self.file.flush()

    def close_archive(self) -> None:
        """Put the checksum behind the zip archive that was written."""
        comment = _comment(self.checksum)
        self.file.seek(-_COUNT_SIZE, os.SEEK_END)
        self.file.write(len(comment).to_bytes(_COUNT_SIZE, "little") + comment)
        self.file.flush()


def _comment(checksum: int) -> bytes:
    return _MARK + f"{checksum:08x}".encode()


def check(path: Path) -> None:
    """Compare a file with the checksum in it, if there is one; once for each version of the file,
    whatever its names.

    Raises:
        DamagedFileError: if they disagree, or the end of the file is not as it was written.
    """
    status = path.stat()
    version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if version not in _checked:
        verify(path)
        _checked.add(version)


_checked: set[tuple[int, ...]] = set()


def verify(path: Path) -> None:
    """As `check`, but every time."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_COMMENT - _END_SIZE))
        tail = file.read()
        file.seek(0)
        if not _has_checksum(file.read(2), tail):
            return
        whole = (
            tail[-_LENGTH - _END_SIZE :].startswith(_END)
            and tail[-_LENGTH - _COUNT_SIZE : -_LENGTH] == _LENGTH.to_bytes(_COUNT_SIZE, "little")
            and tail[-_LENGTH:] == _comment(_checksum(file, size - _LENGTH - _COUNT_SIZE))
        )
    if not whole:
        raise DamagedFileError(
            f"{path} is damaged: its content and the checksum in it disagree; use another "
            "checkpoint, or fetch it again"
        )


def has_checksum(path: Path) -> bool:
    """Whether a file ends with a checksum of ours, whatever else of it is damaged."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LENGTH))
        return file.read().startswith(_MARK)


def _has_checksum(head: bytes, tail: bytes) -> bool:
    """Whether a file ends, or ended before it was damaged, with a checksum of ours.

    Archives without one end with the record, and the length 0 in it.
    """
    plain = tail[-_END_SIZE:].startswith(_END) and not any(tail[-_COUNT_SIZE:])
    return _MARK in tail or (head == b"PK" and _END in tail and not plain)


def _checksum(file: BinaryIO, size: int) -> int:
    """The CRC-32 of the first `size` bytes, and of the comment's length as torch left it: 0."""
    checksum = 0
    file.seek(0)
    while size > 0:
        part = file.read(min(size, _PART))
        if not part:
            break
        checksum = zlib.crc32(part, checksum)
        size -= len(part)
    return zlib.crc32(bytes(_COUNT_SIZE), checksum)
