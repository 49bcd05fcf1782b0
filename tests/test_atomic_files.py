"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from taming.atomic_files import atomic_path, write_text
from taming.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_path(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
        assert partial.parent == path.parent  # on one file system, where a rename is atomic
    assert path.read_text() == "whole" and names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("failure", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(failure)), atomic_path(path) as partial:
        partial.write_text("ha")
        raise failure
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_a_failure_before_anything_is_written_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no"), atomic_path(tmp_path / "file.txt"):
        raise RuntimeError("no")
    assert names(tmp_path) == []


def test_a_full_disk_is_one_sentence_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with pytest.raises(UserError) as raised:
        with atomic_path(path, advice="free some space") as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(raised.value) == f"cannot write {path} (No space left on device); free some space"
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write .*file/under/it.txt"):
        with atomic_path(tmp_path / "file" / "under" / "it.txt"):
            raise AssertionError("the block must not start")


def test_durable_files_are_on_the_disk_before_they_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "file.txt", []

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        assert not path.exists()

    monkeypatch.setattr(os, "fsync", fsync)
    for durable in (False, True):
        with atomic_path(path, durable=durable) as partial:
            partial.write_text("whole")
        assert path.read_text() == "whole"
        path.unlink()
    assert synced == [5]


def test_two_processes_do_not_share_a_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_path(tmp_path / "file") as first:
        first.write_text("first")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with atomic_path(tmp_path / "file") as second:
            second.write_text("second")
        assert first != second and (tmp_path / "file").read_text() == "second"
    assert (tmp_path / "file").read_text() == "first" and names(tmp_path) == ["file"]


def test_texts_are_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "é\n")
    assert (tmp_path / "file.txt").read_bytes() == b"\xc3\xa9\n"
