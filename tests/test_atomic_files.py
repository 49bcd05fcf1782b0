"""Files appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Barrier
from typing import Any
from unittest.mock import Mock

import pytest

from taming.atomic_files import (
    atomic_path,
    check_place,
    first_alone,
    is_running,
    make_new_folder,
    one_at_a_time,
    remove_leftovers,
    sole_user,
    temporary_path,
    write_text,
)
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


def test_impossible_names_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="that is a folder; name a file in it"):
        with atomic_path(""):
            raise AssertionError("it was opened")
    with pytest.raises(UserError, match="names of files have no null character"):
        with atomic_path(tmp_path / "a\0b"):
            raise AssertionError("it was opened")


@pytest.mark.parametrize(
    "name",
    ["あ" * 80 + ".png", "a" * 255, "a" * 230, "aé" * 85, "x.png"],
    ids=lambda name: str(len(name)),
)
def test_names_may_be_as_long_as_file_systems_take(name: str, tmp_path: Path) -> None:
    with atomic_path(tmp_path / name) as partial:
        partial.touch()
        assert partial.exists() and remove_leftovers(tmp_path) == [partial]  # is known as such
        partial.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    one, other = temporary_path(tmp_path / name), temporary_path(tmp_path / name)
    assert one != other and all(part in one.name for part in (name[:20], ".partial"))


def test_only_files_are_replaced(tmp_path: Path) -> None:
    """A device that is named as the output would become a file, for the user root."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "device"), ("folder", "folder")):
        with pytest.raises(UserError, match=f"{name}': that is a {kind}"):
            write_text(tmp_path / name, "x")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "folder").is_dir()


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
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append("folder" if is_folder else os.fstat(descriptor).st_size)
        assert path.exists() == is_folder  # the new name is written down after the content

    monkeypatch.setattr(os, "fsync", fsync)
    for durable in (False, True):
        with atomic_path(path, durable=durable) as partial:
            partial.write_text("whole")
        assert path.read_text() == "whole"
        path.unlink()
    assert synced == [5, "folder"]


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    """Those of living ones, of other machines and of other programs stay."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    alive = subprocess.Popen(["sleep", "60"])
    (tmp_path / "a").mkdir()
    here = temporary_path(Path("last.ckpt")).name.split(".")[-2].partition("-")[0]
    gone = [f".last.ckpt.{dead.pid}.partial", f".x.png.{here}-{dead.pid}-3.partial"]
    gone += [f".own.{here}-{os.getpid()}-7.partial"]
    stay = [f".last.ckpt.{alive.pid}.partial", f".x.{here}-{alive.pid}-3.partial"]
    stay += [".x.0badcafe-1-3.partial", "cache.partial.3.npz", ".notes.partial", "x.ckpt"]
    for name in gone + stay:
        (tmp_path / "a" / name).touch()
    old = tmp_path / "a" / ".old.0badcafe-1-3.partial"
    old.touch()
    os.utime(old, (1, 1))
    removed = remove_leftovers(tmp_path)
    alive.kill()
    alive.wait()
    assert {path.name for path in removed} == {*gone, old.name}
    assert names(tmp_path / "a") == sorted(stay)


def test_two_processes_do_not_share_a_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_path(tmp_path / "file") as first:
        first.write_text("first")
        with atomic_path(tmp_path / "file") as other:  # of a thread
            other.write_text("other")
        assert other != first and (tmp_path / "file").read_text() == "other"
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with atomic_path(tmp_path / "file") as second:
            second.write_text("second")
        assert first != second and (tmp_path / "file").read_text() == "second"
    assert (tmp_path / "file").read_text() == "first" and names(tmp_path) == ["file"]


def test_texts_are_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "é\n")
    assert (tmp_path / "file.txt").read_bytes() == b"\xc3\xa9\n"


def test_folders_are_made_by_one_alone(tmp_path: Path) -> None:
    """Of threads and processes that want one name at the same time, each gets its own."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make_new_folder, [tmp_path / "logs" / "run"] * 8))
    assert len(set(made)) == 8 and all(path.is_dir() for path in made)
    assert set(names(tmp_path / "logs")) == {"run", *(f"run_{n}" for n in range(2, 9))}
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file, not a folder"):
        make_new_folder(tmp_path / "file" / "run")


def test_places_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_place(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match="written to .*file/below, as .*file is a file, not a.*; go"
    ):
        check_place(tmp_path / "file" / "below", "go elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(UserError, match="is write-protected$"):
            check_place(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="its disk is full$"):
        check_place(tmp_path)
    # A file system that counts no bytes is not full; this one does not take files.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=0))
    check_place(tmp_path)

    def refuse(**_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"no files can be made in .* \(Operation not permitted\)$"):
        check_place(tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from taming.atomic_files import sole_user
with sole_user(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_folder_is_held_until_the_process_dies(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process is writing to .*; wait"):
        with sole_user(tmp_path, "wait"):
            raise AssertionError("the block must not start")
    process.kill()
    process.wait()
    reader, writer = os.pipe()
    with sole_user(tmp_path):
        child = os.fork()  # a loader's worker does not hold it
        if child == 0:
            os.write(writer, b"forked")
            time.sleep(100)
            os._exit(0)
        assert os.read(reader, 6) == b"forked"
    with sole_user(tmp_path):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    def enter() -> str:
        with one_at_a_time(tmp_path / "lock"):
            events.append("second")
        return "done"

    events: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with one_at_a_time(tmp_path / "lock"):
            waiting = pool.submit(enter)
            assert not wait([waiting], timeout=0.1).done
            events.append("first")
        assert waiting.result() == "done" and events == ["first", "second"]
    with one_at_a_time(tmp_path / "nowhere/lock"):  # what cannot be locked is not waited for
        assert not (tmp_path / "nowhere").exists()


def test_the_first_process_is_alone(tmp_path: Path) -> None:
    together = Barrier(2, timeout=30)

    def enter() -> bool:
        with first_alone(tmp_path / "lock") as first:
            together.wait()  # the others are in the block at the same time
            return first

    with ThreadPoolExecutor(2) as pool:
        with first_alone(tmp_path / "lock") as first:
            assert first
            others = [pool.submit(enter) for _ in range(2)]
            assert not wait(others, timeout=0.1).done
        assert [other.result() for other in others] == [False, False]
    with first_alone(tmp_path / "nowhere/lock") as first:
        assert first


def test_processes_of_other_users_are_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(process: int, signal: int) -> None:
        raise PermissionError

    assert is_running(os.getpid()) and not is_running(10**30)
    monkeypatch.setattr(os, "kill", kill)
    assert is_running(1)


class Kernel:
    """What is asked of Windows: process 1 runs, 2 has ended, 3 is another user's, 4 unknown."""

    def __init__(self) -> None:
        handles = {1: 10, 2: 20}
        self.OpenProcess = Mock(side_effect=lambda access, inherit, process: handles.get(process))
        self.CloseHandle = Mock()

    def GetExitCodeProcess(self, handle: ctypes.c_void_p, code: Any) -> int:  # noqa: N802
        code._obj.value = {10: 259, 20: 1}[handle.value or 0]
        return 1


def test_processes_of_windows_are_not_sent_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """`os.kill(process, 0)` is Ctrl-C there."""
    kernel = Kernel()
    last = {1: 0, 2: 0, 3: 5, 4: 87}
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    told = []
    for process in (1, 2, 3, 4):
        monkeypatch.setattr(ctypes, "get_last_error", lambda p=process: last[p], raising=False)
        told.append(is_running(process))
    assert told == [True, False, True, False] and not is_running(10**30)
    assert [len(call.args) for call in kernel.CloseHandle.call_args_list] == [1, 1]
