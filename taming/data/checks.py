"""Checks of a dataset's files when it is made, and what is done about bad ones."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from taming.data.files.find import in_threads
from taming.errors import DamagedImage, UserError

T = TypeVar("T")
REPLACEMENTS_TRIED = 100

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
    check: Callable[[int], object], numbers: list[int], *, label: str, source: str, raises: bool
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


class Replacements:
    """What takes the place of items that cannot be used: the next one that can.

    Not a random one, so that it is the same in every run.

    Args:
        source: where the files come from, for errors.
        raises: there is an error instead.
    """

    def __init__(self, source: str, raises: bool) -> None:
        self.source, self.raises = source, raises
        self._skipped: set[str] = set()

    def instead(self, first: BadFile, load: Callable[[int], T], index: int, length: int) -> T:
        """What `load`, which raises `BadFile`, makes of the next item after number `index`, of
        `length`, where it has raised `first`.

        Raises:
            DamagedImage: if this `raises`.
            UserError: if 100 in a row, or all, cannot be used.
        """
        error, tried = first, min(length, REPLACEMENTS_TRIED)
        for step in range(1, tried):
            self._pass_over(error)
            try:
                return load((index + step) % length)
            except BadFile as another:
                error = another
        self._pass_over(error)
        which = "none of its files can be used"
        if tried < length:
            which = f"{tried} files in a row cannot be used"
        raise UserError(f"{self.source}: {which}: {first}; look at the warnings above")

    def _pass_over(self, error: BadFile) -> None:
        if self.raises:
            raise DamagedImage(error.fatal()) from None
        if (sentence := str(error)) not in self._skipped:  # not in every epoch
            self._skipped.add(sentence)
            log.warning("skipped: %s", sentence)
