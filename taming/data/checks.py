"""Checks of a dataset's files when it is made, and what is done about bad ones."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from taming.data.files.find import in_threads
from taming.errors import UserError

# How to say that damaged files are left out; an example, as no dataset knows its split.
SKIP = "data.params.train.params.on_error=skip, and likewise of other splits"

log = logging.getLogger(__name__)

_found_later: ContextVar[bool] = ContextVar("found_later", default=False)


@contextlib.contextmanager
def damage_found_later() -> Iterator[None]:
    """A context in which datasets are made without an error for single damaged files.

    Their items raise `DamagedImage`.
    """
    token = _found_later.set(True)
    try:
        yield
    finally:
        _found_later.reset(token)


class BadFile(Exception):
    """One of a dataset's files cannot be used, as its sentence says; the others may be fine."""

    def fatal(self) -> str:
        """The sentence where it ends the work, with what to do."""
        return f"{self}; replace the file, take it out, or pass over such files: {SKIP}"


def check_items(
    check: Callable[[int], None], numbers: list[int], *, label: str, source: str, raises: bool
) -> None:
    """Run `check` on items, in threads.

    A `BadFile` that it raises becomes a `UserError` if it `raises`; otherwise they are counted in a
    warning.
    """
    bad: list[BadFile] = []
    later = _found_later.get()  # threads have contexts of their own

    def check_or_count(index: int) -> None:
        try:
            check(index)
        except BadFile as error:
            if raises and not later:
                raise UserError(error.fatal()) from None
            bad.append(error)

    for _ in in_threads(numbers, check_or_count, f"{label} {source}"):
        pass
    if bad and not later:
        counts = f"{len(bad)} of the {len(numbers)} files looked at"
        message = "%s: %s cannot be used and others take their place; %s"
        log.warning(message, source, counts, bad[0])
