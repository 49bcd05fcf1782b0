"""How long a run is, and what share of it a number of steps is."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from taming.errors import UserError


@dataclass(frozen=True)
class RunLength:
    """The length of a run in steps; None where it is not known before its end."""

    steps: int | None = None
    steps_per_epoch: int | None = None

    @classmethod
    def of_limits(
        cls, most: int | None, epochs: int | None, batches: int | None, accumulated: int = 1
    ) -> RunLength:
        """Of at most so many steps and epochs, each None where it is no limit, of so many batches,
        None where that is not known, each step of `accumulated`."""
        if batches is None:
            return cls(most)
        per_epoch = math.ceil(batches / accumulated)
        of_epochs = [] if epochs is None else [epochs * per_epoch]
        return cls(min([*of_epochs, *([] if most is None else [most])], default=None), per_epoch)

    def steps_of(self, value: float, key: str) -> int:
        """A number of steps as it is, or what a share of the run, between 0 and 1, is in steps.

        Raises:
            UserError: for a share of a run without an end; `key` is where it is set.
        """
        return max(1, round(value * self.end(key))) if 0 < value < 1 else int(value)

    def end(self, key: str) -> int:
        """The step at which the run ends, which what is set by `key` needs to know."""
        if self.steps is None:
            raise UserError(
                f"{key} follows the length of a run, and this one has no end; give steps, or set "
                "--max_steps, or --max_epochs for data that have a length"
            )
        return self.steps


def percent(value: Any) -> Any:
    """The share that a text such as "10%" stands for, below 1; anything else as it is."""
    share = percent_or_all(value)
    return value if isinstance(value, str) and share == 1 else share


def percent_or_all(value: Any) -> Any:
    """As `percent`, with 1.0 for "100%"."""
    if isinstance(value, str) and value.endswith("%"):
        with suppress(ValueError):
            share = float(value.removesuffix("%")) / 100
            return share if 0 <= share <= 1 else value
    return value
