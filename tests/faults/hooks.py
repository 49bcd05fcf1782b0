"""What the runs under test load through their configs: faults at exact moments, and small data.

A `Fault` is given in the environment (FAULTS, a JSON list), so that a run's configs stay as they
are when it is resumed without them. Moments are the hooks of Lightning's callbacks, and:

    open:<glob>      a file is about to be opened for writing (an audit event of Python's)
    half:<glob>      half of the bytes of a `torch.save` are in the file
    rename:<glob>    a file is about to get this name
    renamed:<glob>   it has got it
    item             an item of `Grains` is read (in a worker, if there are workers)

The nth occurrence at or after the beginning of batch `batch` counts, where batches are counted
from 1 over all epochs. Faults of a list happen one after another.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

WRITTEN = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        moment: where, see above.
        action: a signal's name, `raise`, `sleep`, `nan` (in a weight), `inf` (in a gradient),
            `full` (no file may grow beyond 512 KiB), `fill` (a file takes all that is left of the
            disk of the current folder) or `room` (that is over).
        batch: not before this batch has begun; counted from 1.
        nth: how many times the moment has come by then.
        rank: the process that it happens in.
        to: `process` or `group`: who gets the signal. SIGKILL always goes to the group, as when a
            machine or a container ends; `alone` sends it to the process.
    """

    moment: str
    action: str = "SIGKILL"
    batch: int = 1
    nth: int = 1
    rank: int = 0
    to: str = "process"

    def __str__(self) -> str:
        order = "" if self.nth == 1 else f" no. {self.nth}"
        return f"{self.action} at {self.moment}{order} from batch {self.batch}"


def environment(faults: list[Fault], log: Path) -> dict[str, str]:
    """The variables with which a run has these faults, and writes a line per batch to `log`."""
    return {"FAULTS": json.dumps([asdict(fault) for fault in faults]), "FAULTS_LOG": str(log)}


def _faults() -> list[Fault]:
    names = {field.name for field in fields(Fault)}
    found = [Fault(**{k: v for k, v in entry.items() if k in names}) for entry in _entries()]
    return [fault for fault in found if fault.rank == int(os.environ.get("LOCAL_RANK", 0))]


def _entries() -> list[dict[str, Any]]:
    return json.loads(os.environ.get("FAULTS") or "[]")


class Injector:
    """Counts moments, and makes the first of the faults that wait happen at its own."""

    def __init__(self) -> None:
        self.faults = _faults()
        self.batch = self.seen = 0
        self.busy = False

    def reached(self, moment: str, name: str = "", module: Any = None) -> None:
        """Called at every moment; `name` is the file, if there is one."""
        if not self.faults or self.busy:
            return
        fault = self.faults[0]
        kind, _, pattern = fault.moment.partition(":")
        if kind != moment or not fnmatch.fnmatch(name, pattern or "*"):
            return
        if self.batch < fault.batch:
            return
        self.seen += 1
        if self.seen < fault.nth:
            return
        self.faults.pop(0)
        self.seen = 0
        # Without the lock, what an action does would be a moment again.
        self.busy = True
        try:
            act(fault, module)
        finally:
            self.busy = False


def act(fault: Fault, module: Any = None) -> None:
    """Make a fault happen, here and now."""
    record(f"fault {fault}")
    if fault.action in ("nan", "inf"):
        _spoil(module, fault.action)
    elif fault.action == "raise":
        raise RuntimeError(f"injected: {fault}")
    elif fault.action == "no space":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif fault.action == "sleep":
        time.sleep(3600)
    elif fault.action in ("full", "fill", "room"):
        _limit_room(fault.action)
    else:
        number = signal.Signals[fault.action]
        group = fault.to == "group" or (number == signal.SIGKILL and fault.to != "alone")
        (os.killpg if group else os.kill)(os.getpgrp() if group else os.getpid(), number)


def _limit_room(action: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19 if action == "full" else hard, hard))
    filler = Path("filler")
    filler.unlink(missing_ok=True)
    if action == "fill":
        file = os.open(filler, os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while os.write(file, bytes(2**16)):
                pass
        os.close(file)


def _spoil(module: pl.LightningModule, action: str) -> None:
    """A weight that is not a number, or a gradient that is infinite."""
    for parameter in module.parameters():
        value: Tensor | None = parameter.data if action == "nan" else parameter.grad
        if parameter.requires_grad and value is not None:
            value.view(-1)[0] = float(action)
            return


def record(line: str) -> None:
    """Append a line to the log in one write, which a kill cannot cut."""
    path = os.environ.get("FAULTS_LOG")
    if path:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{os.environ.get('LOCAL_RANK', 0)} {line}\n".encode())
        os.close(file)


INJECTOR = Injector()
_PROCESS = os.getpid()


# ---------------------------------------------------------------------- moments of files


def watch_files() -> None:
    """Make writing and renaming of files moments, in whatever way the code does it."""
    sys.addaudithook(_audit)
    torch.save = _half_first(torch.save)
    os.replace = _renaming(os.replace)
    os.rename = _renaming(os.rename)
    os.link = _renaming(os.link)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        path, mode, flags = arguments
        if (flags or 0) & WRITTEN or set(mode or "") & set("wax+"):
            INJECTOR.reached("open", os.fspath(path))
    elif event in ("os.rename", "os.link"):
        INJECTOR.reached("rename", os.fsdecode(arguments[1]))


def _renaming(function: Callable[..., None]) -> Callable[..., None]:
    def call(source: Any, target: Any, **options: Any) -> None:
        function(source, target, **options)
        INJECTOR.reached("renamed", os.fsdecode(target))

    return call


def _half_first(save: Callable[..., None]) -> Callable[..., None]:
    def call(content: Any, file: Any, *arguments: Any, **options: Any) -> None:
        waiting = INJECTOR.faults[:1]
        if not waiting or not waiting[0].moment.startswith("half"):
            save(content, file, *arguments, **options)
            return
        whole = io.BytesIO()
        save(content, whole, *arguments, **options)
        data = whole.getvalue()
        if isinstance(file, str | os.PathLike):
            with open(file, "wb", buffering=0) as opened:
                _write(opened, data, os.fspath(file))
        else:
            _write(file, data, str(getattr(file, "name", "")))

    return call


def _write(file: Any, data: bytes, name: str) -> None:
    file.write(data[: len(data) // 2])
    file.flush()
    INJECTOR.reached("half", name)
    file.write(data[len(data) // 2 :])


# ---------------------------------------------------------------------- moments of training


class InjectFaults(pl.Callback):
    """Calls the injector at the hooks of training, and keeps the log of batches."""

    def __init__(self) -> None:
        super().__init__()
        if INJECTOR.faults:
            watch_files()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        INJECTOR.batch = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        record(f"begin {INJECTOR.batch}")
        if isinstance(batch, dict) and "file_path_" in batch:
            record(f"seen {trainer.current_epoch} {' '.join(batch['file_path_'])}")
        INJECTOR.reached("on_train_batch_start", module=pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        record(f"end {INJECTOR.batch}")
        INJECTOR.reached("on_train_batch_end", module=pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        INJECTOR.reached("on_train_epoch_end", module=pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        record("fit")
        INJECTOR.reached("on_fit_start", module=pl_module)


def _plain_hook(name: str) -> Callable[..., None]:
    def hook(self: Any, trainer: Any, pl_module: Any, *rest: Any, **named: Any) -> None:
        if not getattr(trainer, "sanity_checking", False):
            INJECTOR.reached(name, module=pl_module)

    return hook


for _name in (
    "on_train_start",
    "on_train_epoch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_save_checkpoint",
    "on_train_end",
):
    setattr(InjectFaults, _name, _plain_hook(_name))


# ---------------------------------------------------------------------- data


class Grains(Dataset[dict[str, Any]]):
    """Images with noise from the global generators, which stand for random crops.

    Args:
        length: number of items.
        size: side in pixels.
        nan_at: the number of an item that is not a number.
    """

    def __init__(self, length: int, size: int = 8, nan_at: int | None = None) -> None:
        self.length, self.size, self.nan_at = length, size, nan_at

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if os.environ.get("FAULTS"):
            INJECTOR.reached("item", str(index))
        base = np.random.RandomState(index).rand(self.size, self.size, 3)
        image = base + 0.2 * np.random.rand(self.size, self.size, 3)
        image = (1.6 * image - 1).clip(-1, 1).astype(np.float32)
        if index == self.nan_at:
            image[:] = np.nan
        return {"image": image, "class_label": index % 10, "file_path_": f"grains/{index}.png"}


# ---------------------------------------------------------------------- a large model


class Ballast(pl.LightningModule):
    """A step of 50 ms, and a state that takes long to write; the log has the time of every step."""

    learning_rate = 0.0

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("ballast", torch.rand(megabytes * 250_000))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        record(f"time {time.monotonic()}")
        time.sleep(0.05)
        return (self.weight * batch["image"].mean()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)
