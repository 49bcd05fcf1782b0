"""Commands of `taming` in processes of their own, such as trainings that go on when they are called
again."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import taming
from taming.errors import UserError, interruptible
from taming.shipped import TRAIN

RUN_TIME = "????-??-??T??-??-??_"  # before the name of each run's folder
FINISHED = "finished"  # a file in the folder of a run that was trained to its end


def run_apart(words: Sequence[str], folder: Path | None = None) -> None:
    """Print and run `taming` with `words` in a process of its own, in a folder (default: here).

    Asked to stop, it waits for the process, which saves what it has. SystemExit if that fails,
    which has said why.
    """
    print(f"\ntaming {shlex.join(words)}", flush=True)
    line = [sys.executable, "-m", "taming", *words]
    code = wait_for(subprocess.Popen(line, env=environment_apart(), cwd=folder))
    if code:
        raise SystemExit(code)


def wait_for(process: subprocess.Popen[Any]) -> int:
    """The exit code of a process, as a shell has it.

    What would end this process is passed on to it. Ctrl+C it receives as well, and `subprocess.run`
    would kill it a quarter of a second later; a second one ends it.
    """
    with _passing_on(process):
        try:
            code = process.wait()
        except KeyboardInterrupt:
            try:
                process.wait()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
            raise
    return 128 - code if code < 0 else code


@contextmanager
def _passing_on(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Signals that would end this process go to another one; only the main thread can do that."""

    def handle(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    alone = threading.current_thread() is not threading.main_thread()
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name) and not alone]
    numbers = [signal.Signals[name] for name in names]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def environment_apart() -> dict[str, str]:
    """Of processes that import this package, also from a clone that is not installed."""
    package = Path(taming.__file__).parents[1]
    paths = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths}


def step_flags(max_steps: int) -> tuple[str, ...]:
    """The flags of `taming train` for so many steps; none for -1, the whole course.

    Raises:
        UserError: for other numbers below 1.
    """
    if max_steps == -1:
        return ()
    if max_steps < 1:
        raise UserError(f"--max_steps is at least 1, or -1 for the whole course, not {max_steps}")
    return ("--max_steps", str(max_steps))


def train_apart(
    name: str,
    logs: Path,
    start: Sequence[str],
    flags: Sequence[str],
    folder: Path | None = None,
) -> Path:
    """The run `name` below `logs`, trained to its end by `run_apart` in `folder`.

    What is finished is not trained again, and what was interrupted goes on. A run of another
    recipe, of a config that has changed since, stays as it is, and a new one is trained beside it.

    Args:
        start: words of a new run's `taming train`.
        flags: words of one that goes on as well.
    """
    run = _begun(name, logs, [*start, *flags], folder)
    if run is not None and (run / FINISHED).is_file():
        return run
    first = start if run is None else ["-r", str(run.resolve())]
    with interruptible("the same command goes on with what was saved"):
        run_apart([TRAIN, *first, "-t", "True", *flags], folder)
    run = run or max(logs.glob(RUN_TIME + name))
    (run / FINISHED).touch()
    return run


def _begun(name: str, logs: Path, words: Sequence[str], folder: Path | None) -> Path | None:
    """The newest run of that name that has a checkpoint and is of the recipe in `words`; what is
    different is said if there are only others."""
    runs = [run for run in logs.glob(RUN_TIME + name) if any(run.glob("checkpoints/*.ckpt"))]
    if not runs:
        return None
    from taming.training.recipes import difference, recipe_of_run, recipe_of_words

    wanted = recipe_of_words(words, folder)
    others = []
    for run in sorted(runs, reverse=True):
        other = difference(recipe_of_run(run), wanted)
        if other is None:
            return run
        others.append(f"{run} is of another recipe ({other}): a new run is trained beside it")
    print(others[0], flush=True)
    return None
