"""Runs a case of made-up input in a process that watches what it does, with a time limit.

Cases run one after another in a process that is forked from a server which has imported everything;
one that never ends or dies is replaced. What counts, in this order: files written outside of the
case's folder and programs or connections started (from Python's audit events), an exception that is
no `UserError`, a sentence that is none.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kit.launch import ROOT, end_group, variables

GOOD = ("fine", "refused")
LIMIT = 30.0  # seconds for a case, on a machine that is busy with other things
MEMORY = 2**30  # bytes that a case may take
DISK = 10**8  # bytes that its files may take
CASES_EACH = 250  # in one process

STARTS = (
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.startfile",
    "pty.spawn",
    "subprocess.Popen",
    "socket.connect",
    "webbrowser.open",
)
WRITES = {  # events -> where among their arguments the written path is
    "os.mkdir": 0,
    "os.remove": 0,
    "os.rmdir": 0,
    "os.rename": 1,
    "os.link": 1,
    "os.symlink": 1,
    "os.truncate": 0,
    "os.chmod": 0,
    "os.chown": 0,
    "shutil.rmtree": 0,
}


class Sandbox:
    """The client; a context manager. Cases are plain values that JSON can hold."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="faults_"))
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *details: object) -> None:
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            end_group(self._server.pid)
            self._server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, target: str, case: Any, limit: float = LIMIT) -> str:
        """What a target of targets.py made of a case: `fine`, `refused: ...`, or what is wrong."""
        server = self._started()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps({"target": target, "case": case, "limit": limit}) + "\n")
        server.stdin.flush()
        return str(json.loads(server.stdout.readline()))

    def _started(self) -> subprocess.Popen[str]:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.cells", str(self.folder)],
                cwd=ROOT,
                env=variables({"PYTHONDONTWRITEBYTECODE": "1", "TAMING_TRUST": ""}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        return self._server


# ---------------------------------------------------------------------- the server


class Cell:
    """A forked process that runs cases until one kills it."""

    def __init__(self, folder: Path) -> None:
        self.cases, self.folder, self.ended = 0, folder, False
        requests, answers = os.pipe(), os.pipe()
        self.process = os.fork()
        if self.process == 0:
            os.close(requests[1])
            os.close(answers[0])
            _serve_cases(folder, requests[0], answers[1])
        os.close(requests[0])
        os.close(answers[1])
        self._requests, self._answers = os.fdopen(requests[1], "w"), os.fdopen(answers[0])

    def run(self, line: str, limit: float) -> str:
        """The answer to a request; a cell that gives none is dead afterwards."""
        self.cases += 1
        self._requests.write(line)
        self._requests.flush()
        ready, _, _ = select.select([self._answers], [], [], limit)
        if not ready:
            self.end()
            return f"never ends (stopped after {limit:.0f} s)"
        answer = self._answers.readline()
        if answer:
            return str(json.loads(answer))
        status = self.end()
        number = -os.waitstatus_to_exitcode(status)
        return f"died of {signal.Signals(number).name if number > 0 else f'exit {-number}'}"

    def end(self) -> int:
        """Kill it, and remove what its last case has left; its status.

        Once: afterwards its number may be another process's.
        """
        if self.ended:
            return 0
        self.ended, self.cases = True, CASES_EACH
        os.kill(self.process, signal.SIGKILL)  # no effect on one that is dead already
        _, status = os.waitpid(self.process, 0)
        for path in self.folder.glob(f"{self.process}_*"):
            shutil.rmtree(path, ignore_errors=True)
        return status


def main() -> None:
    """Serve requests from stdin, an answer each."""
    folder = Path(sys.argv[1])
    from tests.faults import targets

    targets.prepare(folder / "assets")
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    cell: Cell | None = None
    for line in sys.stdin:
        if cell is None or cell.cases >= CASES_EACH:
            if cell is not None:
                cell.end()
            cell = Cell(folder)
        answer = cell.run(line, json.loads(line)["limit"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if cell is not None:
        cell.end()


# ---------------------------------------------------------------------- the cell


class Stopped(BaseException):
    """What a case must not do, and therefore does not."""


CALLS: list[str] = []


def canary(*arguments: Any, **options: Any) -> None:
    """A function that a stranger's config must not reach."""
    CALLS.append(str(arguments or options))


class Watch:
    """Notes, and stops, what the audit events of a case tell."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in STARTS:
            self._bad(f"executed: {event}{str(arguments)[:80]}")
        elif event == "open":
            path, mode, flags = arguments
            if set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
                self._written(path)
        elif event in WRITES:
            self._written(arguments[WRITES[event]])

    def _written(self, path: Any) -> None:
        if isinstance(path, int):
            return
        try:
            whole = os.path.realpath(os.fsdecode(path))
        except ValueError:  # a path with a null byte is none
            return
        if not whole.startswith((str(self.folder), "/dev/")):
            self._bad(f"written outside: {whole}")

    def _bad(self, what: str) -> None:
        self.seen.append(what)
        raise Stopped(what)


def _serve_cases(folder: Path, requests: int, answers: int) -> None:
    from tests.faults import targets

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * DISK, 2 * DISK))
    watch = Watch()
    output = os.fdopen(answers, "w")
    for number, line in enumerate(os.fdopen(requests)):
        request = json.loads(line)
        place = folder / f"{os.getpid()}_{number}"
        place.mkdir()
        os.chdir(place)
        os.environ["HOME"] = str(place)
        os.environ.pop("XDG_CACHE_HOME", None)  # what is written is below HOME
        answer = judge(getattr(targets, request["target"]), request["case"], place, watch)
        os.chdir(folder)
        shutil.rmtree(place, ignore_errors=True)
        output.write(json.dumps(answer) + "\n")
        output.flush()
    os._exit(0)


def judge(target: Callable[[Any], None], case: Any, folder: Path, watch: Watch) -> str:
    """Run a target with a case, and say what became of it."""
    from taming.errors import REFUSALS, UserError

    watch.seen.clear()
    CALLS.clear()
    watch.folder = os.path.realpath(folder)
    try:
        target(case)
        answer = "fine"
    except UserError as error:
        answer = f"refused: {error}" if _is_sentence(str(error)) else f"no sentence: {error!r}"
    except SystemExit as stop:
        answer = "fine" if stop.code in (0, 2, None) else f"exit code {stop.code}"
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in REFUSALS and error.filename:
            return f"refused: {error.strerror}"  # `errors.command` makes a sentence of it
        message = " ".join(str(error)[:100].split())
        answer = f"traceback: {type(error).__name__} at {_place(error)}: {message}"
    finally:
        watch.folder = None
    if CALLS:
        return f"executed: a function of {canary.__module__}"
    # Writing in C++ makes no audit events.
    strange = {path.name for path in folder.parent.iterdir()} - {folder.name, "assets"}
    if strange:
        for name in strange:
            _remove(folder.parent / name)
        return f"written outside: {', '.join(sorted(strange))}"
    if (size := _disk_used(folder)) > DISK:
        return f"fills the disk: {size:,} bytes"
    return watch.seen[0] if watch.seen else answer


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _disk_used(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def _is_sentence(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text and len(text) < 2000


def _place(error: BaseException) -> str:
    """The innermost line of our own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame for frame in frames if "/taming/" in frame.filename or "/scripts/" in frame.filename
    ]
    if not own:
        return "?"
    path = Path(own[-1].filename)
    return f"{path.parent.name}/{path.name}:{own[-1].lineno}"
