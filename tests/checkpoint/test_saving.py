"""Checkpoints are written in the background, whole, from the state at the time of the call."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from stat import S_ISDIR
from typing import Any, NamedTuple

import pytest
import torch

from taming.checkpoint import CheckpointWriter, read_checkpoint, save_atomic, saving
from taming.checkpoint.saving import Snapshots
from taming.errors import UserError


def state(value: float) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((1000,), value)}, "global_step": int(value)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_names_share_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bool] = []  # whether it was a folder
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(S_ISDIR(os.fstat(file).st_mode)))
    paths = [tmp_path / "epoch=1.ckpt", tmp_path / "last.ckpt"]
    for value in (1.0, 2.0):
        save_atomic(state(value), paths[0], also=paths[1:])
    assert os.path.samefile(*paths) and read_checkpoint(paths[1])["global_step"] == 2
    assert names(tmp_path) == ["epoch=1.ckpt", "last.ckpt"]
    assert flushed.count(True) == 4 and not flushed[0]  # names are on the disk as well


def test_a_copy_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*paths: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", link)
    paths = [tmp_path / "epoch=1.ckpt", tmp_path / "last.ckpt"]
    save_atomic(state(1.0), paths[0], also=paths[1:])
    assert not os.path.samefile(*paths) and paths[0].read_bytes() == paths[1].read_bytes()

    def copy_badly(source: Path, target: Path) -> None:
        data = source.read_bytes()
        target.write_bytes(data[:900] + b"x" + data[901:])

    monkeypatch.setattr(shutil, "copyfile", copy_badly)
    with pytest.raises(UserError, match="the disk does not give back"):
        save_atomic(state(2.0), paths[0], also=paths[1:])
    assert read_checkpoint(paths[1])["global_step"] == 1


def test_what_the_disk_does_not_give_back_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_atomic(state(1.0), tmp_path / "last.ckpt")

    def spoil(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 1000:
            os.pwrite(descriptor, b"x", 900)

    monkeypatch.setattr(os, "fsync", spoil)
    with pytest.raises(UserError, match=r"cannot write .*last.ckpt \(the disk does not give back"):
        save_atomic(state(2.0), tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 1
    assert names(tmp_path) == ["last.ckpt"]


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written before it is set."""
    event, save = threading.Event(), saving.save_atomic

    def wait_and_save(*arguments: Any, **options: Any) -> None:
        assert event.wait(20)
        save(*arguments, **options)

    monkeypatch.setattr(saving, "save_atomic", wait_and_save)
    return event


def test_the_newest_takes_the_place_of_one_that_waits(
    tmp_path: Path, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []  # of memory that is taken for copies
    buffer = saving._buffer
    monkeypatch.setattr(saving, "_buffer", lambda *a: (sizes.append(a[0]), buffer(*a))[1])
    writer, last, old = CheckpointWriter(), tmp_path / "last.ckpt", tmp_path / "old.ckpt"
    old.touch()
    writer.save(state(1.0), [last])
    writer.save(state(2.0), [last], outdated=[old])
    writer.save(state(3.0), [tmp_path / "epoch=3.ckpt", last])
    threading.Timer(0.1, go_on.set).start()
    writer.save(state(4.0), [last])  # waits: one that waits has another name, too
    writer.wait()
    assert not writer.busy
    assert names(tmp_path) == ["epoch=3.ckpt", "last.ckpt"]  # what the second would have removed
    assert read_checkpoint(last)["global_step"] == 4
    assert sizes == [4000, 4000]  # of one that is written and one that waits


def test_without_memory_for_a_copy_it_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Snapshots, "take", take)
    writer = CheckpointWriter()
    writer.save(state(1.0), [tmp_path / "last.ckpt"])
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 1
    assert not writer.in_background and not writer.failed


def test_the_state_of_the_call_is_written(tmp_path: Path, go_on: threading.Event) -> None:
    writer, content = CheckpointWriter(), state(1.0)
    writer.reserve(content)
    for value in (1.0, 2.0):
        content["state_dict"]["weight"].fill_(value)
        content["global_step"] = int(value)
        writer.save(content, [tmp_path / f"{value}.ckpt"])
        assert writer.busy
        content["state_dict"]["weight"].fill_(99.0)
        content["global_step"] = 99
        go_on.set()
        writer.wait()
        go_on.clear()
        read = read_checkpoint(tmp_path / f"{value}.ckpt")
        assert read["global_step"] == value and bool((read["state_dict"]["weight"] == value).all())
    assert not writer.busy and writer.failure() is None


def test_outdated_files_stay_until_a_write_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, old, new = CheckpointWriter(), tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    save_atomic(state(1.0), old)

    def fill_up(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    older = tmp_path / "older.ckpt"
    older.touch()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill_up)
        for outdated in (older, old, new):
            writer.save(state(2.0), [new], outdated=[outdated])
            writer.wait()
    failure = writer.failure()
    assert isinstance(failure, UserError) and "No space left" in str(failure)
    assert names(tmp_path) == ["old.ckpt", "older.ckpt"] and writer.failed
    assert writer.failure() is None
    writer.save(state(3.0), [new])
    writer.wait()
    assert names(tmp_path) == ["new.ckpt"] and writer.failure() is None and not writer.failed


def test_a_file_that_cannot_grow_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own refusal, which reaches us through torch's writer."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs Linux")
    with pytest.raises(OSError, match="No space left"):
        saving._write({"weight": torch.randn(100_000)}, Path("/dev/full"))

    def save(content: object, file: Any) -> None:
        with contextlib.suppress(OSError):
            file.write(bytes(100_000))
        raise RuntimeError("unexpected position 0")  # as some versions of torch say

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        saving._write({}, Path("/dev/full"))


def test_failures_that_are_not_the_disks_are_told_as_they_are(tmp_path: Path) -> None:
    writer = CheckpointWriter(in_background=False)
    writer.save({"step": lambda: None}, [tmp_path / "a.ckpt"])
    assert isinstance(writer.failure(), AttributeError | pickle.PicklingError | TypeError)
    assert names(tmp_path) == []


class Point(NamedTuple):
    x: torch.Tensor
    y: int


def test_copies_are_like_what_they_copy(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    weights: OrderedDict[str, Any] = OrderedDict(whole=whole, part=whole[3:9].view(2, 3).t())
    weights._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    content = {
        "state_dict": weights,
        "list": [torch.zeros(0), (1, torch.tensor(True))],
        "sparse": torch.eye(3).to_sparse(),
        "half": torch.ones(3, dtype=torch.bfloat16, requires_grad=True),
        "text": "x",
        "point": Point(torch.ones(1), 2),
        "others": {1},
    }
    snapshots = Snapshots()
    snapshot = snapshots.take(content)
    copied = snapshot.content
    torch.save(content, tmp_path / "a.ckpt")
    torch.save(copied, tmp_path / "b.ckpt")
    assert (tmp_path / "a.ckpt").stat().st_size == (tmp_path / "b.ckpt").stat().st_size
    whole.zero_()
    content["others"].add(2)  # type: ignore[attr-defined]
    assert copied["others"] == {1} and type(copied["point"]) is Point
    assert type(copied["state_dict"]) is OrderedDict
    assert copied["state_dict"]._metadata == weights._metadata
    assert torch.equal(copied["state_dict"]["part"], torch.arange(3.0, 9.0).view(2, 3).t())
    copied["state_dict"]["whole"][3] = -1  # one memory, as before
    assert copied["state_dict"]["part"][0, 0] == -1 and not copied["half"].requires_grad
    assert copied["list"][1][1].item() is True and copied["sparse"].is_sparse
    address = copied["state_dict"]["whole"].data_ptr()
    snapshots.release(snapshot)
    assert snapshots.take(content).content["state_dict"]["whole"].data_ptr() == address


def test_room_is_found_again(tmp_path: Path) -> None:
    """Real files on a real file system that lacks nothing but the folder for a while."""
    writer, folder = CheckpointWriter(), tmp_path / "run"
    folder.write_text("a file in its place")
    writer.save(state(1.0), [folder / "last.ckpt"])
    writer.wait()
    assert isinstance(writer.failure(), UserError)
    folder.unlink()
    writer.save(state(2.0), [folder / "last.ckpt"])
    writer.wait()
    assert writer.failure() is None and read_checkpoint(folder / "last.ckpt")["global_step"] == 2
    shutil.rmtree(folder)


COUNT = """
import os, torch
from taming.checkpoint import CheckpointWriter
torch.set_num_threads(2)
content = {"weight": torch.ones(3_000_000).mul(2)}  # by two threads
before = len(os.listdir("/proc/self/task"))
writer = CheckpointWriter()
writer.reserve(content)
writer.save(content, ["a.ckpt"])
writer.wait()
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux counts threads there")
def test_one_thread_is_added(tmp_path: Path) -> None:
    """More would have OpenMP put those of training to sleep between operations."""
    command = [sys.executable, "-c", COUNT]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"


def test_only_devices_that_are_copied_from_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    snapshots, device = Snapshots(), torch.device("cuda:1")
    snapshots.take({"a": torch.zeros(3)})
    assert waited == []

    def copy(value: Any, storages: dict[Any, Any]) -> Any:
        storages[device, 0] = storages[device, 8] = torch.zeros(1)

    monkeypatch.setattr(snapshots, "_copy", copy)
    snapshots.take({})
    assert waited == [device]
