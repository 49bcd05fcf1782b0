"""Signals: what they ask a run for, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from taming.distributed import Agreement, world_size
from taming.errors import Stopped

# What is asked for, in the order of importance: several processes do what the highest asks.
NOTHING, SAVE, SAVE_NOW, INTERRUPT, TERMINATE = range(5)

# torchrun passes an interrupt from the keyboard, which its processes have received already, on.
_SAME_INTERRUPT = 1.0


class Requests:
    """What signals have asked for.

    SIGUSR1 asks for a checkpoint. SIGTERM and SIGINT ask to stop: at once, or between two steps
    while `gentle` is set, which training sets. A second SIGINT then ends the process at once.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.gentle = False
        self._wanted = NOTHING
        self._since = 0.0
        self._agreement = Agreement()

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Heed signals within the block; only the main thread can."""
        self._reset()  # what an earlier run was asked for is over
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = [name for name in ("SIGUSR1", "SIGTERM", "SIGINT") if hasattr(signal, name)]
        numbers = [signal.Signals[name] for name in names]
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def take_over(self) -> None:
        """Stop between steps from now on, and put our handlers in the place of Lightning's."""
        self.gentle = True
        if threading.current_thread() is threading.main_thread():
            # Lightning's calls a collective from within the handler, wherever the others are.
            signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number not in (signal.SIGTERM, signal.SIGINT):
            self._wanted = max(self._wanted, SAVE_NOW)
            return
        if self.stop is not None and number == signal.SIGINT and not self._is_echo():
            os._exit(128 + number)
        if self.stop is None:
            self._since = time.monotonic()
        self._wanted = max(self._wanted, TERMINATE if number == signal.SIGTERM else INTERRUPT)
        if not self.gentle:
            raise Stopped(number)
        _say(f"{signal.Signals(number).name}: stopping after this step, once it is saved")

    def _is_echo(self) -> bool:
        launched = "TORCHELASTIC_RUN_ID" in os.environ
        return launched and time.monotonic() - self._since < _SAME_INTERRUPT

    @property
    def stop(self) -> int | None:
        """The number of the signal that asks to stop; None if none does."""
        return signal_of(self._wanted)

    def agreed(self, own: int) -> int:
        """What any of the processes wants; `own` is what this one does besides its signals.

        Each must ask after the same steps. Of several processes, all are told together, a step
        later than the first wants it: they exchange it while the step is computed.
        """
        wanted = max(own, self._wanted)
        if self._wanted == SAVE_NOW:
            self._wanted = NOTHING
        if world_size() == 1:
            return wanted
        agreed = self._agreement.received()
        if signal_of(agreed) is None:
            self._agreement.send(wanted)
        return agreed

    def wait_for_all(self) -> None:
        """Wait until all processes are here."""
        self._agreement.wait_for_all()


@rank_zero_only
def _say(line: str) -> None:
    """Print from within a signal's handler, which may have interrupted another `print`."""
    os.write(2, f"{line}\n".encode())


def signal_of(wanted: int) -> int | None:
    """The signal that asked for it, if it is to stop."""
    return {INTERRUPT: signal.SIGINT, TERMINATE: signal.SIGTERM}.get(wanted)


# Signals are sent to a process, so there is one.
requests = Requests()


def start_worker(number: int) -> None:
    """The `worker_init_fn` of loaders: leaves signals to the parent, and never outlives it.

    Clusters and terminals send signals to all processes. A loader's worker that ended by them would
    fail the step that the parent is about to finish and save. The parent itself may end a worker
    that hangs by a second SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _heed_the_next)
    _die_with_parent()


def _heed_the_next(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def _die_with_parent() -> None:
    """Linux ends the process when its parent ends; elsewhere torch looks every few seconds."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
