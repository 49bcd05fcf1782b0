"""Bytes inside tars: those of the member, or an error before memory is taken for a claim."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from taming.data.files.tar_members import member_path, opened, read_bytes


def test_members_are_read_by_place(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    path = member_path(str(tmp_path / "a.tar"), 3, 4, "jpg")
    assert read_bytes(path) == b"3456"
    file = opened(path)
    assert not isinstance(file, str) and file.read() == b"3456"


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
