"""Which weights of a file are loaded: `--weights`, `--parts`, and the same of `taming.load`.

Files may hold two sets: those that were trained, and their moving average (EMA).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from taming.errors import UserError

RAW, EMA = "raw", "ema"


@dataclass(frozen=True)
class WeightChoice:
    """What to load from a file with weights.

    Attributes:
        kind: "raw", "ema", or None for EMA where there is one.
        parts: the model's only parts that are loaded, such as "encoder"; all by default. The others
            keep their random initial values.
    """

    kind: str | None = None
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in (None, RAW, EMA):
            raise UserError(f"--weights takes {RAW} or {EMA}, not '{self.kind}'")


# What a command line says; None: nothing.
chosen_weights: ContextVar[WeightChoice | None] = ContextVar("chosen_weights", default=None)


def weight_choice() -> WeightChoice:
    """What a command line, or the caller of `taming.load`, has chosen."""
    return chosen_weights.get() or WeightChoice()


@contextlib.contextmanager
def choosing_weights(kind: str | None, parts: Sequence[str]) -> Iterator[None]:
    """Load these while the context lasts; without any, what was chosen before."""
    chosen = WeightChoice(kind, tuple(parts)) if kind or parts else weight_choice()
    token = chosen_weights.set(chosen)
    try:
        yield
    finally:
        chosen_weights.reset(token)
