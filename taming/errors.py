"""User errors are reported as one sentence (exit code 2); bugs keep their traceback."""

from __future__ import annotations

import contextvars
import errno
import functools
import gc
import os
import signal
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

P = ParamSpec("P")

# What the system says of files and disks that only their owner can mend. Not that a file is
# missing: users' files are looked for, so that would be a bug. EEXIST is of a folder that is to be
# made where a file is.
_REFUSED = (
    "EACCES",
    "EDQUOT",
    "EEXIST",
    "EIO",
    "EISDIR",
    "ENAMETOOLONG",
    "ENOSPC",
    "ENOTDIR",
    "EROFS",
)
REFUSALS = {number for number, name in errno.errorcode.items() if name in _REFUSED}
FULL = {number for number, name in errno.errorcode.items() if name in ("ENOSPC", "EDQUOT")}


_HERE = Path(__file__).parent
_INSTALLED = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")})
_PACKAGES = {"site-packages", "dist-packages"}  # also those of the user, and of other environments
_OURS = (str(_HERE), *(str(_HERE.parent / name) for name in ("scripts", "benchmarks")))
_MAIN = str(_HERE.parent / "main.py")

# Users' classes and functions that a command has made something of, by their dotted names.
own_code: ContextVar[dict[str, None] | None] = ContextVar("own_code", default=None)


class UserError(Exception):
    """The user's input is wrong; the message is one sentence: what was wrong, and what to do.

    It is one line, also where it quotes what has several.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).splitlines()))


def reason_of(error: OSError) -> str:
    """What the system says is wrong, without the name of the file."""
    return error.strerror or str(error) or type(error).__name__


def absence(kind: str, path: object) -> str:
    """A sentence: there is no such file or folder, or what is there instead."""
    place = str(path)
    for other, is_there in (("folder", os.path.isdir), ("file", os.path.isfile)):
        if place and is_there(place):
            return f"{place} is a {other}, not a {kind}"
    return f"there is no {kind} {place}"


def shorten(value: Any, most: int = 100) -> str:
    """A value as Python writes it, or the beginning of that."""
    return shortened(repr(value), most)


def shortened(text: str, most: int = 100) -> str:
    """A text, or its beginning."""
    return text if len(text) <= most else f"{text[:most]}..."


def is_full(error: BaseException | None) -> bool:
    """Whether there is no room left, on the disk or of what its user may have."""
    return isinstance(error, OSError) and error.errno in FULL


class Stopped(SystemExit):
    """A signal asked to stop: the exit code is 128 + its number, as shells have it.

    Attributes:
        number: the signal's.
        message: what became of the work, for the last line.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(128 + number)
        self.number, self.message = number, message


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """A block, or a function, of which an interruption from the keyboard says what is `kept`.

    It stays a `KeyboardInterrupt`, for who calls this from a notebook; the innermost block counts.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(str(interrupt) or kept) from None


class NonFiniteError(UserError):
    """A loss or gradient of training is not finite; the model's state is not to be saved."""


class DamagedImage(UserError):
    """One image among many cannot be used; the others may be fine."""


def sentence(error: UserError) -> str:
    """The message alone, also where a data loader's worker has wrapped it in its traceback."""
    text = str(error)
    for kind in (UserError, DamagedImage):
        text = text.rsplit(f"{kind.__name__}: ", 1)[-1]
    return text.strip()


def end_with_damaged(sentences: Sequence[str]) -> None:
    """At the end of a script that left images out: name and count them, and exit with code 1."""
    if sentences:
        for text in sentences:
            print(f"left out: {text}", file=sys.stderr)
        count = "1 image" if len(sentences) == 1 else f"{len(sentences)} images"
        print(f"error: {count} could not be used; all others were", file=sys.stderr)
        raise SystemExit(1)


def described(error: BaseException) -> str:
    """`KeyError: 'a' (my_data.py, line 12)`: an exception, and the user's line that it is from."""
    text = f"{type(error).__name__}: {error}".strip(": \n")
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({_shown(str(error.filename))}, line {error.lineno})"
    line = line_of(error)
    return f"{text} ({_shown(line.filename)}, line {line.lineno})" if line else text


def line_of(error: BaseException) -> traceback.FrameSummary | None:
    """The last line in no installed package, on the way from where it is caught."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame for frame in reversed(frames) if is_users_file(frame.filename)), None)


def is_users_file(file: str) -> bool:
    """Whether code is in no installed package, and not this project's."""
    folders = tuple(f"{folder}{os.sep}" for folder in (*_OURS, *_INSTALLED))
    installed = not _PACKAGES.isdisjoint(Path(file).parts)
    return file != _MAIN and not installed and not file.startswith(("<", *folders))


def _shown(file: str) -> str:
    """The path from the working directory, if it leads down from there."""
    relative = os.path.relpath(file)
    return file if relative.startswith(os.pardir) else relative


def _of_own_code(error: Exception) -> str | None:
    """What to say of an exception that users' own code raises, or may be the cause of; else None.

    The traceback, which they need then, goes to a file.
    """
    names, line = own_code.get(), line_of(error)
    if line is None and not names:
        return None
    about = "" if line else f", perhaps as {' or '.join(names or ())} lacks what is needed there"
    handle, path = tempfile.mkstemp(prefix="traceback-", suffix=".txt", text=True)
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(traceback.format_exception(error)))
    return f"{described(error)}{about}; the way there is in {path}"


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


SIGPIPE = 13  # not every system has the signal


def command(main: Callable[P, None]) -> Callable[P, None]:
    """Decorate an entry point: a `UserError` becomes one line on stderr and exit code 2.

    So does what the system says of a file, if it is the user's to mend, and what users' own code
    raises, or may be the cause of.

    The message of `Stopped` is printed likewise, and that of an interruption from the keyboard.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        context = contextvars.copy_context()
        if main.__module__ == "__main__":  # what was imported stays: no garbage to look for there
            gc.freeze()
        try:
            # What a command line sets, as `--trust` does, ends with it.
            context.run(own_code.set, {})
            context.run(main, *args, **kwargs)
        except UserError as error:
            _refuse(sentence(error))
        except Stopped as stop:
            if stop.message:
                print(stop.message, file=sys.stderr)
            raise SystemExit(stop.code) from None
        except BrokenPipeError:  # as of `| head`, which has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(128 + SIGPIPE) from None
        except KeyboardInterrupt as interrupt:
            print(f"interrupted; {interrupt}".rstrip("; "), file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None
        except Exception as error:
            message = _of_system(error) or context.run(_of_own_code, error)
            if message is None:
                raise
            _refuse(message)

    return run


def _of_system(error: Exception) -> str | None:
    """What to say of what the system says of a file, if it is the user's to mend."""
    # Reading and writing, unlike opening, do not name the file.
    if not isinstance(error, OSError):
        return None
    mendable = REFUSALS if error.filename else FULL | {errno.EIO}
    name = error.filename or "a file"
    return f"{name} cannot be used ({reason_of(error)})" if error.errno in mendable else None
