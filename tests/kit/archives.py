"""Archives of a few bytes that claim to hold much."""

from __future__ import annotations

import io
import tarfile
import zipfile


def zeros_in_zip(name: str, size: int, head: bytes = b"") -> bytes:
    """A zip with a file of `head` and `size` zeros; it has a thousandth of that in bytes."""
    raw, block = io.BytesIO(), bytes(2**20)
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(name, "w", force_zip64=True) as file:
            file.write(head)
            for _ in range(size // len(block)):
                file.write(block)
    return raw.getvalue()


def sparse_tar(name: str, size: int) -> bytes:
    """A tar of 2 kB with one sparse member of `size` bytes."""
    member = tarfile.TarInfo(name)
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = tarfile.itn(size - 512, 12, tarfile.GNU_FORMAT) + b"00000001000\0"
    header[124:136] = tarfile.itn(512, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    header[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + b"x" * 512 + bytes(1024)
