"""Loggers that outlive a full disk: training goes on, and they do when there is room again."""

from __future__ import annotations

import csv
import functools
import io
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment

from taming.atomic_files import write_text
from taming.errors import UserError
from taming.lightning_internals import csv_writer, forget_event_file

log = logging.getLogger(__name__)

_RETRY = 60.0  # seconds


class Table(CSVLogger):
    """Lightning's table of logged values, which has whole rows only.

    Rows that cannot be written are kept in memory, and written later.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        return csv_writer(self, _TableWriter)


class _TableWriter(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._columns: Sequence[str] = ()  # of the file
        self._failing = False

    def save(self) -> None:
        """Write the rows that were logged since the last time."""
        if not self.metrics:
            return
        self._record_new_keys()
        try:
            self._write(Path(self.metrics_file_path), list(self.metrics_keys))
        except (OSError, UserError) as error:
            if not self._failing:
                log.warning("%s: training goes on, and logs when there is room", error)
            self._failing = True
            return
        self._failing, self.metrics = False, []

    def _write(self, path: Path, columns: list[str]) -> None:
        if self._columns != columns:  # or there is no file yet
            write_text(path, _lines([columns]) + _old_rows(path, columns) + self._new())
            self._columns = columns
            return
        content = memoryview(self._new().encode())
        with path.open("ab", buffering=0) as file:  # a buffer would be written again by `close`
            size = file.tell()
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise

    def _new(self) -> str:
        return _rows(self.metrics_keys, self.metrics)


def _old_rows(path: Path, columns: Sequence[str]) -> str:
    if not path.exists():
        return ""
    with path.open(newline="", encoding="utf-8") as file:
        return _rows(columns, list(csv.DictReader(file)))


def _rows(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    return _lines([[row.get(column, "") for column in columns] for row in rows])


def _lines(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue()


def _enduring(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of `Board` that does nothing for a while after the disk has refused it."""

    @functools.wraps(method)
    def call(self: Board, *args: Any, **options: Any) -> Any:
        if time.monotonic() < self.silent_until:
            return None
        try:
            return method(self, *args, **options)
        except (OSError, ValueError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(reason, OSError):  # Lightning turns all into a ValueError
                raise
            if not self.silent_until:
                log.warning("TensorBoard's log cannot be written (%s): training goes on", reason)
            self.silent_until = time.monotonic() + _RETRY
            forget_event_file(self)
            return None

    return call


class Board(TensorBoardLogger):
    """Lightning's logger for TensorBoard; what is logged while the disk is full is lost."""

    silent_until = 0.0

    log_metrics = _enduring(TensorBoardLogger.log_metrics)
    log_hyperparams = _enduring(TensorBoardLogger.log_hyperparams)
    save = _enduring(TensorBoardLogger.save)
    finalize = _enduring(TensorBoardLogger.finalize)


@functools.cache  # once is enough
def silence_event_writers() -> None:
    """Print no traceback where TensorBoard's own thread finds no room: its caller is told."""
    print_others = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        full = issubclass(args.exc_type, OSError)
        if not (full and type(args.thread).__name__ == "_AsyncWriterThread"):
            print_others(args)

    threading.excepthook = hook
