"""Files inside tar files, addressed as paths: `train-000000.tar::OFFSET:SIZE.jpg`.

`read_bytes` and `opened` take such paths as well as those of files, and of records of LMDB
databases (`lmdb_records`).
"""

from __future__ import annotations

import functools
import io
import os
import tarfile
from typing import IO

from taming.data.files.lmdb_records import is_record, read_record
from taming.errors import UserError
from taming.user_files import read_at, regular

SEPARATOR = "::"
OPEN_TARS = 64


def member_path(tar: str, offset: int, size: int, ending: str) -> str:
    """The path of the bytes [offset, offset + size) of `tar`."""
    return f"{tar}{SEPARATOR}{offset}:{size}.{ending}"


def is_member(path: str) -> bool:
    """Whether `path` is inside a tar file or a database."""
    return f".tar{SEPARATOR}" in path or is_record(path)


def require_plain(member: tarfile.TarInfo, tar: str | os.PathLike[str]) -> None:
    """Refuse a sparse member: of a few bytes in the tar come as many zeros as its header says.

    Raises:
        UserError: naming tar and member.
    """
    if member.issparse():
        raise UserError(f"{tar} holds {member.name!r} as a sparse file; write it as a plain one")


@functools.lru_cache(OPEN_TARS)
def _tar(path: str) -> IO[bytes]:
    return open(regular(path), "rb")


def read_bytes(path: str) -> bytes:
    """The content of a file, a file in a tar, or a record; raises OSError."""
    if is_record(path):
        return read_record(path)
    if not is_member(path):
        with open(regular(path), "rb") as file:
            return file.read()
    tar, _, place = path.rpartition(SEPARATOR)
    offset, _, size = place.partition(".")[0].partition(":")
    archive = _tar(tar)
    # Before memory is taken for what an index or a header claims.
    if not 0 <= int(offset) <= int(offset) + int(size) <= os.fstat(archive.fileno()).st_size:
        raise OSError("the tar file has been cut short, or says more than it holds")
    content = bytearray(int(size))
    if read_at(archive, memoryview(content), int(offset)) < len(content):
        raise OSError("the tar file has been cut short")
    return bytes(content)


def opened(path: str) -> str | io.BytesIO:
    """The path, or for a member its content, as Pillow and numpy can open it.

    Raises OSError if there is nothing, or what is no file.
    """
    return io.BytesIO(read_bytes(path)) if is_member(path) else regular(path)


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file to an open tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
