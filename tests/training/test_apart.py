"""Processes that a command waits for are given the time to save what they have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.launch import heed_signals, variables

CHILD = """
import pathlib, signal, sys, time

def save(number, frame):
    time.sleep(1)
    pathlib.Path("saved").write_text(str(number))
    sys.exit(128 + number)

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, save)
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
from taming.training.apart import wait_for

sys.exit(wait_for(subprocess.Popen([sys.executable, "-c", sys.argv[1]])))
"""


@pytest.mark.parametrize(
    ("send", "number"),
    [
        (os.killpg, signal.SIGINT),
        (os.kill, signal.SIGTERM),
        (os.kill, signal.SIGHUP),
        (os.killpg, signal.SIGTERM),
    ],
    ids=["Ctrl+C", "SIGTERM", "SIGHUP", "SIGTERM to all"],
)
def test_who_is_asked_to_stop_waits_for_what_it_started(
    tmp_path: Path, send: Callable[[int, int], None], number: signal.Signals
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD],
        cwd=tmp_path,
        env=variables({}),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,
    )
    try:
        assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
        send(parent.pid, number)
        parent.communicate(timeout=60)
        assert (tmp_path / "saved").read_text() == str(int(number))
        assert parent.returncode == (-2 if number == signal.SIGINT else 128 + number)
    finally:
        parent.kill()


def test_a_code_is_as_a_shell_has_it() -> None:
    from taming.training.apart import wait_for

    line = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert wait_for(subprocess.Popen(line)) == 137
