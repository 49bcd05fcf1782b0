"""Which weights of a file are loaded: `--weights`, `--parts`, and the same of `taming.load`.

Files may hold two sets: those that were trained, and their moving average (EMA). Transformers are
sampled from with either, as they are or in int8.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from taming.errors import UserError

RAW, EMA, INT8 = "raw", "ema", "int8"


@dataclass(frozen=True)
class WeightChoice:
    """What to load from a file with weights.

    Attributes:
        kind: "raw", "ema", or None for EMA where there is one.
        parts: the model's only parts that are loaded, such as "encoder"; all by default. The others
            keep their random initial values.
        int8: whether a transformer computes with them in int8, see `in_int8`.
    """

    kind: str | None = None
    parts: tuple[str, ...] = ()
    int8: bool = False

    @classmethod
    def parse(cls, text: str | None, parts: Sequence[str] = ()) -> WeightChoice:
        """Of "raw", "ema", "int8", or one of the first two and the last: "raw,int8"."""
        names = [] if text is None else text.split(",")
        int8 = INT8 in names and len(names) <= 2
        if int8:
            names.remove(INT8)
        return cls(",".join(names) if names else None, tuple(parts), int8)

    def __post_init__(self) -> None:
        if self.kind not in (None, RAW, EMA):
            raise UserError(
                f"--weights takes {RAW} or {EMA}, not '{self.kind}'; or, to sample on a CPU, "
                f"{INT8}, also with one of them, as {RAW},{INT8}"
            )

    def describe(self) -> dict[str, Any]:
        """As JSON values: `weights` as the flag takes them, None without it; `parts` if not all."""
        named = [name for name in (self.kind, INT8 if self.int8 else None) if name]
        parts = {"parts": list(self.parts)} if self.parts else {}
        return {"weights": ",".join(named) or None, **parts}


# What a command line says; None: nothing.
chosen_weights: ContextVar[WeightChoice | None] = ContextVar("chosen_weights", default=None)


def weight_choice() -> WeightChoice:
    """What a command line, or the caller of `taming.load`, has chosen."""
    return chosen_weights.get() or WeightChoice()


def ordinary_choice() -> WeightChoice:
    """As `weight_choice`, for what computes with weights as they are in the file.

    Raises:
        UserError: if int8 was chosen.
    """
    choice = weight_choice()
    if choice.int8:
        raise UserError(
            f"--weights {INT8} is for sampling from a transformer on a CPU; leave {INT8} out here"
        )
    return choice


@contextlib.contextmanager
def in_int8(device: str) -> Iterator[bool]:
    """For what can compute in int8: whether to do so. While the context lasts, weights are loaded.

    Args:
        device: the kind of device that will compute: "cpu", "cuda".

    Raises:
        UserError: if int8 was chosen for another device than a CPU.
    """
    choice = weight_choice()
    if choice.int8 and device != "cpu":
        raise UserError(
            f"--weights {INT8} is for CPUs, and this is {device}; add --device cpu, or leave "
            f"{INT8} out"
        )
    token = chosen_weights.set(replace(choice, int8=False))
    try:
        yield choice.int8
    finally:
        chosen_weights.reset(token)


@contextlib.contextmanager
def choosing_weights(kind: str | None, parts: Sequence[str]) -> Iterator[None]:
    """Load these while the context lasts; without any, what was chosen before.

    A text is one part.
    """
    named = (parts,) if isinstance(parts, str) else parts
    chosen = WeightChoice.parse(kind, named) if kind or parts else weight_choice()
    token = chosen_weights.set(chosen)
    try:
        yield
    finally:
        chosen_weights.reset(token)
