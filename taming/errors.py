"""User errors are reported as one sentence (exit code 2); bugs keep their traceback."""

from __future__ import annotations

import contextvars
import errno
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, ParamSpec

P = ParamSpec("P")

# What the system says of files and disks that only their owner can mend. Not that a file is
# missing: users' files are looked for, so that would be a bug.
_REFUSED = ("EACCES", "EDQUOT", "EIO", "EISDIR", "ENAMETOOLONG", "ENOSPC", "ENOTDIR", "EROFS")
REFUSALS = {number for number, name in errno.errorcode.items() if name in _REFUSED}
FULL = {number for number, name in errno.errorcode.items() if name in ("ENOSPC", "EDQUOT")}


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
    text = repr(value)
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


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


def command(main: Callable[P, None]) -> Callable[P, None]:
    """Decorate an entry point: a `UserError` becomes one line on stderr and exit code 2.

    So does what the system says of a file, if it is the user's to mend.

    The message of `Stopped` is printed likewise.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            # What a command line sets, as `--trust` does, ends with it.
            contextvars.copy_context().run(main, *args, **kwargs)
        except UserError as error:
            _refuse(sentence(error))
        except OSError as error:
            # Reading and writing, unlike opening, do not name the file.
            if error.errno not in (REFUSALS if error.filename else FULL | {errno.EIO}):
                raise
            _refuse(f"{error.filename or 'a file'} cannot be used ({reason_of(error)})")
        except Stopped as stop:
            if stop.message:
                print(stop.message, file=sys.stderr)
            raise SystemExit(stop.code) from None

    return run
