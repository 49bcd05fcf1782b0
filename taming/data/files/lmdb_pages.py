"""A check of LMDB databases, whose library ends the process where a page is not what it should be.

The format (of version 0.9, on 64-bit little-endian machines), in bytes: a page begins with its
number (8), 2 unused, its flags (2), and the end of the list of its nodes' places (2 each, from 16
on). Pages 0 and 1 describe the database; the one that was written last holds.
"""

from __future__ import annotations

import mmap
import struct

BRANCH, LEAF = 1, 2
PAGE = struct.Struct("<QHHH")  # number, unused, flags, end of the places
HEADER = 16
MAGIC = 0xBEEFC0DE
NONE = 2**64 - 1  # the root of an empty database


def check_tree(file: str) -> None:
    """Check that all pages above the records are there, and are such pages.

    Of three million records this reads some 50,000 pages. Raises OSError if one is damaged.
    """
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            size, root = _description(data)
            waiting = [root] if root != NONE else []
            for _ in range(len(data) // size):  # in circles, it would never end
                if not waiting:
                    return
                waiting += _below(data, size, waiting.pop())
        except (struct.error, IndexError) as error:
            raise OSError(f"it is damaged: {error}") from None
    if waiting:
        raise OSError("it is damaged: its pages are below each other in a circle")


def _description(data: mmap.mmap) -> tuple[int, int]:
    """Bytes of a page, and the number of the tree's root."""
    magic, _, _, _, size = struct.unpack_from("<IIQQI", data, HEADER)
    if magic != MAGIC or size < HEADER:
        raise OSError("it is no LMDB database")
    # After magic, version, address and size: two trees of 48 bytes, which end in their root; then
    # the last page and the number of the transaction.
    found = [struct.unpack_from("<QQQ", data, HEADER + 24 + 88 + start) for start in (0, size)]
    return size, max(found, key=lambda one: one[2])[0]


def _below(data: mmap.mmap, size: int, page: int) -> list[int]:
    """The pages below one of the tree."""
    start = page * size
    number, _, flags, end = PAGE.unpack_from(data, start)
    if number != page or flags & 7 not in (BRANCH, LEAF) or not HEADER < end <= size:
        raise OSError(f"it is damaged: page {page:,} is not what it should be")
    if flags & LEAF:
        return []
    places = struct.unpack_from(f"<{(end - HEADER) // 2}H", data, start + HEADER)
    nodes = (struct.unpack_from("<HHH", data, start + place) for place in places)
    return [low | middle << 16 | high << 32 for low, middle, high in nodes]
