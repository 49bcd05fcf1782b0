"""Checkpoints onto the disk: whole or not at all, verified, and while training goes on."""

from __future__ import annotations

import copy
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taming.atomic_files import atomic_path
from taming.checkpoint.checksum import DamagedFileError, SummedFile, verify


def save_atomic(content: Any, path: str | Path, also: Sequence[str | Path] = ()) -> None:
    """Write a checkpoint with its checksum; `path` is at any moment the old file or the new one.

    It is read back from the disk and compared with its checksum before it gets its name.

    Args:
        also: other names of the same file: hard links, or copies where there can be none.

    Raises:
        UserError: if it cannot be written, for example on a full disk.
    """
    with atomic_path(path, durable=True) as partial:
        _write(content, partial)
    for name in also:
        with atomic_path(name, durable=True) as partial:
            try:
                os.link(path, partial)
            except OSError:
                shutil.copyfile(path, partial)
                _read_back(partial)


def _write(content: Any, path: Path) -> None:
    with path.open("wb") as file:
        summed = SummedFile(file)
        try:
            torch.save(content, summed)  # type: ignore[arg-type]  # all that it needs of a file
        except RuntimeError as error:
            raise summed.error or error from None
        summed.close_archive()
    _read_back(path)


def _read_back(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that it is read from the disk, not from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        verify(path)
    except DamagedFileError:
        raise OSError("the disk does not give back what was written to it") from None


# ---------------------------------------------------------------------- copies in memory


class Snapshots:
    """Copies of a training state in the CPU's memory, one at a time, always in the same memory.

    Copying to memory that was never used takes five times as long, most of it in the operating
    system. What was copied from CUDA devices is in pinned memory.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, bool], list[Tensor]] = defaultdict(list)
        self._storages: dict[tuple[torch.device, int], Tensor] = {}

    def take(self, content: Any) -> Any:
        """A copy of nested dicts, lists and tuples; it is valid until `release`.

        Tensors that share memory do so in the copy.
        """
        copied = self._copy(content)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return copied

    def release(self) -> None:
        """Let the next copy take the memory of this one."""
        for buffer in self._storages.values():
            self._free[_kind(buffer)].append(buffer)
        self._storages.clear()

    def _copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach())
        if isinstance(value, dict):
            new = copy.copy(value)  # of its own class and with its attributes
            new.update({key: self._copy(entry) for key, entry in value.items()})
            return new
        if isinstance(value, list):
            return [self._copy(entry) for entry in value]
        if type(value) is tuple:
            return tuple(self._copy(entry) for entry in value)
        return copy.deepcopy(value)

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided or tensor.device.type not in ("cpu", "cuda"):
            return tensor.to("cpu", copy=True)
        data = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        data.set_(tensor.untyped_storage())
        key = (tensor.device, data.data_ptr())
        if key not in self._storages or not len(data):
            self._storages[key] = self._buffer(len(data), pinned=tensor.is_cuda)
            self._storages[key].copy_(data, non_blocking=tensor.is_cuda)
        storage = self._storages[key].untyped_storage()
        copied = torch.empty(0, dtype=tensor.dtype)
        copied.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        return copied

    def _buffer(self, size: int, pinned: bool) -> Tensor:
        free = self._free[size, pinned]
        return free.pop() if free else torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


def _kind(buffer: Tensor) -> tuple[int, bool]:
    return len(buffer), buffer.is_pinned() if torch.cuda.is_initialized() else False


# ---------------------------------------------------------------------- in the background


class CheckpointWriter:
    """Writes checkpoints one at a time in a thread, each from a copy of the state.

    A failure leaves the files as they were. It is kept until `failure` is asked for it.

    Args:
        in_background: otherwise `save` writes without a copy, and returns when it is done.
    """

    def __init__(self, in_background: bool = True) -> None:
        self.in_background = in_background
        self._snapshots = Snapshots()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._outdated: list[Path] = []

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def reserve(self, content: Any) -> None:
        """Take the memory for copies of `content`, in the background, before the first is made."""
        if self.in_background:
            self.wait()
            self._start(self._reserve, content)

    def save(self, content: Any, paths: Sequence[Path], outdated: Sequence[Path] = ()) -> None:
        """Write `content`, as it is now, to all of `paths`; waits for the write before this one.

        `outdated` files are removed afterwards: if it fails, after the next that succeeds.
        """
        self.wait()
        self._outdated += [path for path in outdated if path not in self._outdated]
        if self.in_background:
            self._start(self._write, self._snapshots.take(content), list(paths))
        else:
            self._write(content, list(paths))

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def failure(self) -> Exception | None:
        """Why the last write failed, told once: a `UserError` if the disk was at fault."""
        failure, self._failure = self._failure, None
        return failure

    def _start(self, function: Callable[..., None], *arguments: Any) -> None:
        self._thread = threading.Thread(target=function, args=arguments, name="checkpoint-writer")
        self._thread.start()

    def _reserve(self, content: Any) -> None:
        self._snapshots.take(content)
        self._snapshots.release()

    def _write(self, content: Any, paths: list[Path]) -> None:
        try:
            save_atomic(content, paths[0], also=paths[1:])
            self._failure = None
            self._remove_outdated(paths)
        except Exception as error:  # raised where `failure` is asked for
            self._failure = error
        finally:
            self._snapshots.release()

    def _remove_outdated(self, written: list[Path]) -> None:
        for path in self._outdated:
            if path not in written:
                with suppress(OSError):
                    path.unlink()
        self._outdated = []
