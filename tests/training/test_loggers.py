"""The table of logged values on a disk that fills within a row."""

from __future__ import annotations

import csv
import resource
import signal
from pathlib import Path

import pytest

from taming.training.loggers import Table


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
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caplog.text.count("training goes on") == 1
    table.save()
    with path.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2"]
