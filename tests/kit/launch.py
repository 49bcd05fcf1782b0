"""Starts `python main.py` (or a script) in processes of its own, with a time limit.

Importing torch takes most of the time of a small run. So by default a server imports everything
once, and every run is a fork of it that executes main.py as a program, leads a process group of
its own and is killed like any other. `fresh=True` starts a new interpreter instead.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT = 120.0  # seconds, on a machine that is busy with other things


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        code: its exit code, as a shell has it; `HUNG` if it had to be stopped.
        output: what it printed.
        seconds: how long it took.
        orphans: processes that it had started were still there `PATIENCE` seconds later.
    """

    code: int
    output: str
    seconds: float
    orphans: bool = False

    @property
    def hung(self) -> bool:
        return self.code == HUNG

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output

    @property
    def last_line(self) -> str:
        lines = self.output.strip().splitlines()
        return lines[-1] if lines else ""


HUNG = 124
PATIENCE = 15.0  # torch's loader processes look for their parent every five seconds


def variables(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of programs: this checkout, one thread, our classes trusted."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TAMING_TRUST": "tests"}
    return {**os.environ, **own, **extra}


def shell_code(status: int) -> int:
    """128 + n for signal n, as a shell has it."""
    return 128 - status if status < 0 else status


class Launcher:
    """Runs programs one at a time; a context manager."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._variables = variables({})  # not those of the test that starts the server

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *details: object) -> None:
        if self._server is not None:  # which has nothing to lose
            end_group(self._server.pid)
            self._server.wait()
            self._server = None

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        program: str = "main.py",
        environment: Mapping[str, str] | None = None,
        fresh: bool = False,
        limit: float = LIMIT,
        root: Path = ROOT,
    ) -> Ended:
        """Run `program` of a checkout in `folder`, and all processes it starts, to the end."""
        output = folder / "output.txt"
        start = time.monotonic()
        request = {
            "argv": [str(root / program), *arguments],
            "folder": str(folder),
            "environment": dict(environment or {}),
            "output": str(output),
        }
        code, orphans = (self._fresh if fresh else self._fork)(request, limit)
        text = output.read_text(errors="replace")
        return Ended(code, text, time.monotonic() - start, orphans)

    def _fresh(self, request: dict[str, Any], limit: float) -> tuple[int, bool]:
        with open(request["output"], "w") as output:
            process = subprocess.Popen(
                [sys.executable, *request["argv"]],
                cwd=request["folder"],
                env=variables(request["environment"]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=heed_signals,
            )
        ended = wait_unreaped(process.pid, time.monotonic() + limit)
        orphans = ended and outlived(process.pid)
        end_group(process.pid)
        code = process.wait()
        return (shell_code(code), orphans) if ended else (HUNG, False)

    def _fork(self, request: dict[str, Any], limit: float) -> tuple[int, bool]:
        server = self._started()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps({**request, "limit": limit}) + "\n")
        server.stdin.flush()
        code, orphans = json.loads(server.stdout.readline())
        return code, orphans

    def _started(self) -> subprocess.Popen[str]:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.kit.forks"],
                cwd=ROOT,
                env=self._variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        return self._server


def heed_signals() -> None:
    """A shell lets what it starts in the background ignore SIGINT, and nohup SIGHUP; programs under
    test must not."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_unreaped(process: int, deadline: float) -> bool:
    """Wait for a child until `deadline`; whether it has ended.

    It is not reaped, so that its number is no other process's when its group is killed.
    """
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, process, options) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def outlived(leader: int) -> bool:
    """Whether processes of a group are still there after a while."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if not living(leader):
            return False
        time.sleep(0.05)
    return True


def living(group: int) -> list[int]:
    """The processes of a group that have not ended; zombies, for whom nobody waits, have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, number = path.read_text().rpartition(")")[2].split()[:3]
            if int(number) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def end_group(leader: int) -> None:
    """Kill what a program leaves behind; its leader must not have been reaped."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
