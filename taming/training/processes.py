"""The processes of one training run: if one dies, the others end, and say which it was."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from subprocess import Popen

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from taming.distributed import world_size
from taming.errors import Stopped
from taming.lightning_internals import take_child_processes
from taming.training.data_module import DataModuleFromConfig

SIGKILL = 9  # not every system has the signal
_LOOKS_EVERY = 0.5  # seconds
# Where the connection to the dead breaks, the main thread ends sooner, and says so itself.
_PATIENCE = 10.0
_LOST_CONNECTION = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed out|timeout|TCPStore",
    re.IGNORECASE,
)


class ProcessWatch(Callback):
    """Looks after the other processes of this machine that Lightning has started, in a thread.

    Rank 0 has started them, and looks after them; they look after it. A process that waits for a
    dead one, which it might for long, is ended, in place of Lightning's own watch, which kills
    without a word.

    Args:
        before_exit: called before the process ends.
    """

    def __init__(self, before_exit: Callable[[], None]) -> None:
        super().__init__()
        self._before_exit = before_exit
        self._children: list[Popen[bytes]] = []
        self._parent: int | None = None
        self._first_rank = 0  # of this machine
        self._over = threading.Event()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._children = take_child_processes(trainer)
        self._first_rank = trainer.global_rank - trainer.local_rank
        if trainer.local_rank > 0 and _is_started_by_rank_zero():
            self._parent = os.getppid()
        if self._children or self._parent is not None:
            threading.Thread(target=self._look, name="process-watch", daemon=True).start()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._over.set()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, Stopped):  # all processes end
            self._over.set()

    def death(self) -> str | None:
        """A sentence that names the process that has died; None if none has."""
        if self._parent is not None and os.getppid() != self._parent:
            return f"rank {self._first_rank} (process {self._parent}) has died"
        for number, child in enumerate(self._children, start=self._first_rank + 1):
            if code := child.poll():
                return f"rank {number} (process {child.pid}) {_manner(code)}"
        return None

    def explain(self, error: BaseException) -> str | None:
        """The death that an exception in this process comes from, if it comes from one."""
        lost = bool(_LOST_CONNECTION.search(f"{type(error).__name__}: {error}"))
        deadline = time.monotonic() + (_PATIENCE / 2 if lost else 0)
        while (death := self.death()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        started_elsewhere = not self._children and self._parent is None and world_size() > 1
        if death is None and lost and started_elsewhere:  # as by torchrun, which looks after them
            reason = str(error).strip().partition("\n")[0]
            lost_it = "the connection to another process is lost"
            return f"{lost_it}; if it has ended, it says why ({reason})"
        return death

    def end_others(self) -> None:
        """End the processes that this one has started, which may wait for the dead for ever."""
        self._over.set()
        for child in self._children:
            child.kill()

    def _look(self) -> None:
        while self.death() is None:
            if self._over.wait(_LOOKS_EVERY):
                return
        if self._over.wait(_PATIENCE):
            return
        print(f"error: {self.death()}, and this process with it", file=sys.stderr, flush=True)
        self._before_exit()
        self.end_others()
        os._exit(2)


class LoaderWatch(Callback):
    """Ends a process that hangs in the loading of an item, where no loader processes do that.

    Loader processes are waited for with torch's own timeout.
    """

    def __init__(self, before_exit: Callable[[], None]) -> None:
        super().__init__()
        self._before_exit = before_exit
        self._over = threading.Event()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        loads = isinstance(data, DataModuleFromConfig) and data.num_workers == 0 < data.timeout
        if stage == "fit" and loads:
            arguments = (data,)
            threading.Thread(target=self._look, args=arguments, daemon=True).start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._over.set()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._over.set()
        if loader_timed_out(exception):
            end_workers()  # which Lightning's teardown would wait for, several times

    def _look(self, data: DataModuleFromConfig) -> None:
        while data.slowest_item()[0] < data.timeout:
            if self._over.wait(_LOOKS_EVERY):
                return
        print(f"error: {hang(data)}", file=sys.stderr, flush=True)
        self._before_exit()
        os._exit(2)


def loader_timed_out(error: BaseException) -> bool:
    """Whether torch has waited for its loader processes for longer than `data.params.timeout`."""
    return "DataLoader timed out" in str(error)


def hang(data: DataModuleFromConfig) -> str:
    """A sentence that names what is being loaded for too long."""
    seconds, item = data.slowest_item()
    return (
        f"the loading of {item} hangs, for {max(seconds, data.timeout):.0f} seconds now: look "
        "after its disk or network, or raise data.params.timeout"
    )


def end_workers() -> None:
    """End loader processes that may never answer, which this one would wait for when it ends."""
    for process in multiprocessing.active_children():
        with suppress(RuntimeError):  # torch raises it for each of its loaders' that is killed
            process.kill()
            process.join(timeout=1)  # not for ever, for one that waits for a dead disk


def _is_started_by_rank_zero() -> bool:
    """torchrun and SLURM start, and look after, all processes themselves."""
    return not {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys()


def _manner(code: int) -> str:
    if code > 0:
        return f"has ended with exit code {code}"
    if -code == SIGKILL:
        return "was killed (SIGKILL), as the system does where memory runs out"
    return f"was ended by {signal.Signals(-code).name}"
