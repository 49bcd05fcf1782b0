"""The table of logged values on a disk that fills within a row."""

from __future__ import annotations

import csv
import resource
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from pytorch_lightning.loggers import TensorBoardLogger

from taming.training import loggers
from taming.training.loggers import Board, Table


def test_rows_are_whole_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Part of a row still fits: the system writes it, and then refuses the rest."""
    table = Table(tmp_path, name="", version="start")
    path = tmp_path / "start" / "metrics.csv"
    table.log_metrics({"loss": 0.123456789}, step=0)
    table.save()
    whole, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 5, limits[1]))
    try:
        for step in (1, 2):
            table.log_metrics({"loss": 0.123456789}, step=step)
            table.save()
            assert path.read_bytes() == whole
            assert caplog.text.count("training goes on") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    table.save()
    with path.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_rows_stay_when_a_column_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, whole = Table(tmp_path, name="", version="start"), Mock(wraps=loggers.write_text)
    monkeypatch.setattr(loggers, "write_text", whole)
    for step, name in enumerate(("loss", "rate", "loss")):
        table.log_metrics({name: step + 0.5}, step=step)
        table.save()
    with (tmp_path / "start" / "metrics.csv").open(newline="") as file:
        rows = [(row["step"], row["loss"], row["rate"]) for row in csv.DictReader(file)]
    assert rows == [("0", "0.5", ""), ("1", "", "1.5"), ("2", "2.5", "")]
    assert whole.call_count == 2  # other rows are added alone


def test_a_board_that_was_refused_is_tried_again_after_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, tried, forgotten = [5.0], list[float](), list[Any]()
    monkeypatch.setattr(loggers.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(loggers, "forget_event_file", forgotten.append)
    for name in ("log_metrics", "log_hyperparams", "save", "finalize"):
        assert getattr(Board, name).__wrapped__ is getattr(TensorBoardLogger, name)

    def write(_: Any) -> str:
        tried.append(clock[0])
        if clock[0] < 65:
            raise OSError("full")
        return "written"

    board: Any = SimpleNamespace(silent_until=0.0)
    for clock[0] in (5.0, 6.0, 64.0, 65.0, 66.0):
        result = loggers._enduring(write)(board)
    assert tried == [5, 65, 66] and result == "written" and forgotten == [board]
    assert caplog.text.count("training goes on") == 1
    with pytest.raises(ValueError, match="ours"):
        loggers._enduring(lambda _: _raise(ValueError("ours")))(board)


def test_only_tensorboards_thread_is_silent_and_only_on_a_full_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class _AsyncWriterThread(threading.Thread):
        pass

    others = Mock()
    monkeypatch.setattr(threading, "excepthook", others)
    loggers.silence_event_writers.__wrapped__()
    cases = [
        (OSError, _AsyncWriterThread(), 0),
        (FileNotFoundError, _AsyncWriterThread(), 0),
        (ValueError, _AsyncWriterThread(), 1),
        (OSError, threading.Thread(), 2),
    ]
    for kind, thread, printed in cases:
        hook: Any = threading.excepthook
        hook(SimpleNamespace(exc_type=kind, thread=thread))
        assert others.call_count == printed


def _raise(error: Exception) -> None:
    raise error
