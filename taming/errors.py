"""User errors are reported as one sentence (exit code 2); bugs keep their traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


class UserError(Exception):
    """The user's input is wrong; the message is one sentence: what was wrong, and what to do."""


def sentence(error: UserError) -> str:
    """The message alone, also where a data loader's worker has wrapped it in its traceback."""
    return str(error).rsplit(f"{UserError.__name__}: ", 1)[-1].strip()


def command(main: Callable[P, None]) -> Callable[P, None]:
    """Decorate an entry point: a `UserError` becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            print(f"error: {sentence(error)}", file=sys.stderr)
            raise SystemExit(2) from None

    return run
