"""Values in a config are checked against the hints of what they are parameters of.

The hints of a constructor are its schema. Ranges stand in them, beside the types:

    def __init__(self, n_embed: Count, dropout: FractionBelowOne = 0.0) -> None: ...

They say what a config may hold, and functions in them read it; calls from Python are not checked.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Unpack

from taming.run_length import percent
from taming.signatures import signature_of
from taming.user_files import with_home

# ---------------------------------------------------------------------- what hints say


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`, which may be these, or `above` and `below` others."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: Any) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low = None if self.least is None else f"from {self.least:,}"
        low = low if self.above is None else f"above {self.above:,}"
        high = None if self.most is None else f"{self.most:,}"
        high = high if self.below is None else f"below {self.below:,}"
        if low is None and high is None:
            return "a finite number"
        if low is None:
            return f"at most {high}" if self.below is None else str(high)
        if high is None:
            return f"{low} on" if self.above is None else low
        return f"{low} to {high}"


@dataclass(frozen=True)
class Length:
    """Lists of so many entries."""

    least: int
    most: int

    def holds(self, value: Any) -> bool:
        return self.least <= len(value) <= self.most

    def __str__(self) -> str:
        least = "" if self.least == self.most else f"{self.least} to "
        return f"of {least}{self.most} entries"


@dataclass(frozen=True)
class Builds:
    """The value is a config, `target` and `params`, of what is of a kind of `taming.config`; or of
    what checks it where it is made. The `dispensable` may be of a package that is not installed."""

    kind: str | None = None
    dispensable: bool = False


class Arguments:
    """The value holds the arguments of all of these classes, and may hold others."""

    def __init__(self, *targets: type) -> None:
        self.targets = targets


_MOST = 2**31 - 1  # of what is counted; products of such numbers are limited by memory

Count = Annotated[int, Range(1, _MOST)]
CountOrZero = Annotated[int, Range(0, _MOST)]
StepOrShare = Annotated[CountOrZero | Annotated[float, Range(above=0, below=1)], percent]
Pixels = Annotated[int, Range(1, 2**16)]  # a side of an image, or its channels
Finite = Annotated[float, Range()]
NonNegative = Annotated[float, Range(0)]
Weight = Annotated[float, Range(0, 1_000_000)]  # of a term of a loss, or of a rate
Positive = Annotated[float, Range(above=0)]
Fraction = Annotated[float, Range(0, 1)]
FractionBelowOne = Annotated[float, Range(0, below=1)]
FilePath = Annotated[str, lambda path: with_home(path) if isinstance(path, str) else path]
AnyPath = FilePath | Path
ModuleConfig = Annotated[Mapping[str, Any], Builds("module")]
LossConfig = Annotated[Mapping[str, Any], Builds("module", dispensable=True)]
ScheduleConfig = Annotated[Mapping[str, Any], Builds("schedule")]
TransformConfig = Annotated[Mapping[str, Any], Builds()]
DatasetConfig = Annotated[Mapping[str, Any], Builds("dataset")]

_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_NAMES |= {Sequence: "a list", Mapping: "a mapping", type(None): "null"}
_SINGULAR = re.compile(r"\ba (whole number|number|text|list|mapping)\b")
_ABSTRACT: dict[Any, Any] = {list: Sequence, tuple: Sequence, dict: Mapping}


# ---------------------------------------------------------------------- values


class Misfit(Exception):
    """A value is of another type than its hint; the message says what is expected."""


class OutOfRange(Misfit):
    """A value is of the right type, and not what stands beside it in the hint."""


def fitted(value: Any, hint: Any) -> Any:
    """`value` as its hint wants it: 1e4, which YAML takes for a float, is the integer 10000.

    Hints other than Python's plain types accept anything. Numbers are finite.

    Raises:
        Misfit: for values of another type, or out of range.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fitted_to_rules(value, hint)
    if origin in (typing.Union, types.UnionType):
        return _fitted_to_one(value, parts)
    if origin is typing.Literal:
        return _one_of(value, parts)
    if hint is Path:
        return fitted(value, FilePath)
    kind = _kind_of(hint)
    if kind not in _NAMES:
        return value
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not _is_of(value, kind):
        raise Misfit(_name_of(hint))
    if kind is float and not _is_finite(value):
        raise Misfit("a finite number")
    return _fitted_entries(value, hint) if kind is Sequence else value


def _fitted_entries(value: Any, hint: Any) -> Any:
    parts = typing.get_args(hint)
    if len(parts) != 1 or not isinstance(value, list):
        return value
    try:
        return [fitted(entry, parts[0]) for entry in value]
    except Misfit:
        raise Misfit(_name_of(hint)) from None


def _fitted_to_rules(value: Any, hint: Any) -> Any:
    """By functions among what stands beside the type, then by the type, then within its range."""
    for rule in hint.__metadata__:
        value = rule(value) if inspect.isroutine(rule) else value
    try:
        value = fitted(value, _plain(hint))
    except OutOfRange:
        raise
    except Misfit:
        raise Misfit(_name_of(hint)) from None
    for rule in hint.__metadata__:
        if isinstance(rule, Range | Length) and not rule.holds(value):
            raise OutOfRange(str(rule))
    return value


def _one_of(value: Any, choices: Sequence[Any]) -> Any:
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    raise Misfit(" or ".join(map(str, choices)))


def _fitted_to_one(value: Any, hints: Sequence[Any]) -> Any:
    ranges: list[str] = []
    # 1.0 is a float already where that is one of the choices.
    for hint in sorted(hints, key=lambda hint: _plain(hint) is int and isinstance(value, float)):
        try:
            return fitted(value, hint)
        except OutOfRange as error:
            ranges.append(str(error))
        except Misfit:
            continue
    if ranges:
        raise OutOfRange(" or ".join(ranges))
    raise Misfit(" or ".join(dict.fromkeys(map(_name_of, hints))))


def _kind_of(hint: Any) -> Any:
    return _ABSTRACT.get(kind := typing.get_origin(hint) or hint, kind)


def _plain(hint: Any) -> Any:
    """A hint without what stands beside its type."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _is_of(value: Any, kind: Any) -> bool:
    if kind is int:
        return isinstance(value, typing.SupportsIndex) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, typing.SupportsFloat) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str | os.PathLike)
    if kind is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str)
    return isinstance(value, kind)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer of more than 300 digits
        return False


def _name_of(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if any(isinstance(rule, Builds) for rule in parts[1:]):
            return "a mapping of target and params"
        ranges = (rule for rule in parts[1:] if isinstance(rule, Range | Length))
        rules = [str(rule) for rule in ranges if rule != Range()]
        return " ".join([_name_of(parts[0]), *rules])
    if origin in (typing.Literal, typing.Union, types.UnionType):
        return " or ".join(map(str if origin is typing.Literal else _name_of, parts))
    kind = _kind_of(hint)
    if kind is Sequence and parts:
        entry = _name_of(parts[0])
        if (entries := _SINGULAR.sub(r"\1s", entry)) != entry:
            return f"a list of {entries}"
    return _NAMES.get(str if kind is Path else kind, inspect.formatannotation(kind))


def rules_of(hint: Any) -> Iterator[Any]:
    """What stands beside the types of a hint, or of its choices."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        yield from (*parts[1:], *rules_of(parts[0]))
    elif origin in (typing.Union, types.UnionType):
        for part in parts:
            yield from rules_of(part)


# ---------------------------------------------------------------------- parameters


# Its constructor takes any keywords, which it refuses. The compiler puts another in its place.
MODULE = ("torch.nn.modules.module", "Module")


def parameters_of(target: Any) -> tuple[dict[str, Any], list[str], bool]:
    """Accepted names with their hints, required names, and whether any name at all is taken.

    A subclass that passes `**kwargs` on takes what its base classes take; what they require, it may
    give itself, but for classes of this project with `*args, **kwargs`.
    """
    accepted, required = dict[str, Any](), list[str]()
    passes_on, lineage = True, list(_lineage(target))
    if lineage and (lineage[0].__module__, lineage[0].__qualname__) == MODULE:
        return {}, [], False
    constructors = [vars(cls)["__init__"] for cls in lineage]
    for function in constructors or [target]:  # a class as a whole, if it is made by __new__
        try:
            parameters = list(signature_of(function).parameters.values())
        except ValueError:  # of a class that is written in C
            return {}, [], True
        parameters = parameters[bool(constructors) :]  # without self
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        hints = _hints(function)
        open_ended, options = _keyword_options(parameters, hints)
        accepted = options | {p.name: hints.get(p.name, Any) for p in named} | accepted
        if passes_on:
            required += [p.name for p in named if p.default is p.empty]
        kinds = {parameter.kind for parameter in parameters}
        passes_on &= inspect.Parameter.VAR_POSITIONAL in kinds and _is_ours(function)
        if not open_ended:
            return accepted, required, False
    return accepted, required, True


def _keyword_options(
    parameters: Sequence[inspect.Parameter], hints: Mapping[str, Any]
) -> tuple[bool, dict[str, Any]]:
    """Whether there is a `**kwargs` of any names; those of `**options: Unpack[SomeTypedDict]`."""
    names = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
    hint = hints.get(names[0]) if names else None
    if typing.get_origin(hint) is not Unpack:
        return bool(names), {}
    return False, typing.get_type_hints(typing.get_args(hint)[0], include_extras=True)


def _lineage(target: Any) -> Iterator[type]:
    """The project's classes, from `target` up, that have a constructor of their own."""
    for cls in target.__mro__ if inspect.isclass(target) else ():
        if cls is not object and inspect.isfunction(vars(cls).get("__init__")):
            yield cls


def _is_ours(function: Any, packages: tuple[str, ...] = ("taming.",)) -> bool:
    return str(getattr(function, "__module__", "")).startswith(packages)


def _hints(function: Any) -> dict[str, Any]:
    """Of this project's functions and Lightning's; those of others are not made for checks."""
    if not _is_ours(function, ("taming.", "pytorch_lightning.")):
        return {}
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # a name that is imported for type checkers only
        return {}
