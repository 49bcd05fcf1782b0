"""Bytes inside tars: those of the member, or an error before memory is taken for a claim."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taming.data.files.tar_members import member_path, opened, read_bytes
from taming.user_files import read_at


def test_members_are_read_by_place(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    path = member_path(str(tmp_path / "a.tar"), 3, 4, "jpg")
    assert read_bytes(path) == b"3456"
    file = opened(path)
    assert not isinstance(file, str) and file.read() == b"3456"


@pytest.mark.parametrize("gone", [(), ("preadv",), ("preadv", "pread")])
def test_systems_without_calls_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: tuple[str, ...]
) -> None:
    """Windows has neither call."""
    for name in gone:
        monkeypatch.delattr(os, name)
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    paths = [member_path(str(tmp_path / "a.tar"), place, 4, "jpg") for place in (3, 0, 6)]
    with ThreadPoolExecutor(4) as pool:  # that share the file
        assert list(pool.map(read_bytes, paths * 50)) == [b"3456", b"0123", b"6789"] * 50
    (tmp_path / "a.tar").write_bytes(b"01234567")
    with open(tmp_path / "a.tar", "rb") as file:
        memory = bytearray(4)
        assert file.read(1) == b"0" and read_at(file, memoryview(memory), 5) == 3
        assert memory == b"567\0" and file.read(1) == b"1"


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 11), (9, 2), (-1, 3), (3, -1), (0, 2**40), (2**70, 1)]
)
def test_places_outside_of_the_tar(tmp_path: Path, offset: int, size: int) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    tracemalloc.start()
    with pytest.raises(OSError, match="cut short, or says more than it holds"):
        read_bytes(member_path(str(tmp_path / "a.tar"), offset, size, "jpg"))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
