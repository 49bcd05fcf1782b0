"""Checkpoints onto the disk: whole or not at all, verified, and while training goes on."""

from __future__ import annotations

import copy
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taming.atomic_files import atomic_path
from taming.checkpoint.checksum import DamagedFileError, SummedFile, verify

log = logging.getLogger(__name__)


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


@dataclass
class Snapshot:
    """A copy of a training state in the CPU's memory, and the memory of its tensors."""

    content: Any
    buffers: list[Tensor]


class Snapshots:
    """Copies training states, always to the same memory.

    Copying to memory that was never used takes five times as long, most of it in the operating
    system. What comes from CUDA devices goes to pinned memory.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, bool], list[Tensor]] = defaultdict(list)

    def take(self, content: Any) -> Snapshot:
        """A copy of nested dicts, lists and tuples, valid until it is given to `release`.

        Tensors that share memory do so in the copy.
        """
        storages: dict[tuple[torch.device, int], Tensor] = {}
        copied = self._copy(content, storages)
        for device in {device for device, _ in storages if device.type == "cuda"}:
            torch.cuda.synchronize(device)
        return Snapshot(copied, list(storages.values()))

    def reserve(self, content: Any) -> None:
        """Use the memory that a copy of `content` takes for the first time."""
        sizes = {(t.device, t.data_ptr()): (len(t), t.is_cuda) for t in _storages(content)}
        for size, pinned in sizes.values():
            buffer = _buffer(size, pinned)
            # Not by torch: its OpenMP would keep threads for this one as well, more than there are
            # CPUs, and from then on let all threads sleep between operations.
            buffer.numpy().fill(0)
            self._free[size, pinned].append(buffer)

    def release(self, snapshot: Snapshot) -> None:
        """Let another copy take the memory of this one."""
        pinned = torch.cuda.is_initialized()
        for buffer in snapshot.buffers:
            self._free[len(buffer), pinned and buffer.is_pinned()].append(buffer)
        snapshot.buffers = []

    def _copy(self, value: Any, storages: dict[tuple[torch.device, int], Tensor]) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), storages)
        if isinstance(value, dict):
            new = copy.copy(value)  # of its own class and with its attributes
            new.update({key: self._copy(entry, storages) for key, entry in value.items()})
            return new
        if isinstance(value, list):
            return [self._copy(entry, storages) for entry in value]
        if type(value) is tuple:
            return tuple(self._copy(entry, storages) for entry in value)
        return copy.deepcopy(value)

    def _copy_tensor(
        self, tensor: Tensor, storages: dict[tuple[torch.device, int], Tensor]
    ) -> Tensor:
        if not _has_plain_storage(tensor):
            return tensor.to("cpu", copy=True)
        data = _bytes(tensor)
        key = (tensor.device, data.data_ptr())
        if key not in storages or not len(data):
            free = self._free[len(data), data.is_cuda]
            storages[key] = free.pop() if free else _buffer(len(data), data.is_cuda)
            storages[key].copy_(data, non_blocking=data.is_cuda)
        storage = storages[key].untyped_storage()
        copied = torch.empty(0, dtype=tensor.dtype)
        return copied.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _has_plain_storage(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type in ("cpu", "cuda")


def _bytes(tensor: Tensor) -> Tensor:
    """All of the memory that a tensor, and maybe others, are parts of."""
    data = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return data.set_(tensor.untyped_storage())


def _storages(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if _has_plain_storage(value):
            yield _bytes(value)
    elif isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _storages(entry)


def _buffer(size: int, pinned: bool) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


# ---------------------------------------------------------------------- in the background


@dataclass
class _Job:
    snapshot: Snapshot
    paths: list[Path]
    outdated: list[Path]
    done: Future[None] = field(default_factory=Future)


class CheckpointWriter:
    """Writes checkpoints one at a time in a thread, each from a copy of the state.

    While one is being written, another can wait; a third takes its place if it has all of its
    names, and else `save` waits. A failure leaves the files as they were, and is kept until
    `failure` is asked for it.

    Args:
        in_background: otherwise `save` writes without a copy, and returns when it is done.

    Attributes:
        failed: the last write did.
    """

    def __init__(self, in_background: bool = True) -> None:
        self.in_background = in_background
        self.failed = False
        self._failure: Exception | None = None
        self._kept: list[Path] = []  # what failed writes have not replaced
        self._snapshots = Snapshots()
        self._reserving: Future[None] | None = None
        self._jobs: list[_Job] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(not job.done.done() for job in self._jobs)

    def reserve(self, content: Any) -> None:
        """Take the memory for copies of `content`, in the background, before the first is made."""
        if self.in_background:
            self._reserving = self._thread.submit(self._snapshots.reserve, content)

    def save(self, content: Any, paths: Sequence[Path], outdated: Sequence[Path] = ()) -> None:
        """Write `content`, as it is now, to all of `paths`.

        `outdated` files are removed afterwards: if it fails, after the next that succeeds.
        """
        outdated = [*outdated, *self._make_place(set(paths))]
        snapshot = self._snapshot(content) if self.in_background else None
        job = _Job(snapshot or Snapshot(content, []), list(paths), outdated)
        if snapshot is None:
            self.wait()
            self._write(job)
            return
        job.done = self._thread.submit(self._write, job)
        self._jobs.append(job)

    def _snapshot(self, content: Any) -> Snapshot | None:
        """A copy; None, and no copies from now on, if there is no memory for it."""
        try:
            if self._reserving is not None:
                self._reserving.result()
                self._reserving = None
            return self._snapshots.take(content)
        except (MemoryError, RuntimeError) as error:
            log.warning("checkpoints are not copied before they are written (%s)", error)
            self.in_background = False
            return None

    def wait(self) -> None:
        """Wait until nothing is being written."""
        for job in self._jobs:
            job.done.result()

    def failure(self) -> Exception | None:
        """Why the last write failed, told once: a `UserError` if the disk was at fault."""
        failure, self._failure = self._failure, None
        return failure

    def _make_place(self, paths: set[Path]) -> list[Path]:
        """Have no job wait besides the one that is being done; `outdated` of the one left out."""
        self._jobs = [job for job in self._jobs if not job.done.done()]
        if len(self._jobs) < 2:
            return []
        first, waiting = self._jobs
        if paths >= set(waiting.paths) and waiting.done.cancel():
            self._jobs = [first]
            self._snapshots.release(waiting.snapshot)
            return waiting.outdated
        first.done.result()
        return []

    def _write(self, job: _Job) -> None:
        try:
            save_atomic(job.snapshot.content, job.paths[0], also=job.paths[1:])
            self.failed, self._failure = False, None
            self._remove({*self._kept, *job.outdated} - set(job.paths))
        except Exception as error:  # raised where `failure` is asked for
            self.failed, self._failure = True, error
            self._kept += job.outdated
        finally:
            self._snapshots.release(job.snapshot)

    def _remove(self, outdated: set[Path]) -> None:
        for path in outdated:
            with suppress(OSError):
                path.unlink()
        self._kept = []
