"""Values in a config are checked against the type hints of what they are parameters of."""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_NAMES |= {Sequence: "a list", Mapping: "a mapping", type(None): "null"}


class Misfit(Exception):
    """A value is of another type than its hint; the message says what is expected."""


def fitted(value: Any, hint: Any) -> Any:
    """`value` as its hint wants it: 1e4, which YAML takes for a float, is the integer 10000.

    Hints other than Python's plain types accept anything.

    Raises:
        Misfit: for values of another type.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _fitted_to_one(value, parts)
    if origin is typing.Literal:
        if value not in parts:
            raise Misfit(" or ".join(map(str, parts)))
        return value
    kind = origin or hint
    if kind in (list, tuple, Path):
        kind = str if kind is Path else Sequence
    if kind not in _NAMES and kind is not dict:
        return value
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not _is_of(value, Mapping if kind is dict else kind):
        raise Misfit(_name_of(hint))
    if kind is Sequence and len(parts) == 1 and isinstance(value, list):
        try:
            return [fitted(entry, parts[0]) for entry in value]
        except Misfit:
            raise Misfit(_name_of(hint)) from None
    return value


def _fitted_to_one(value: Any, hints: Sequence[Any]) -> Any:
    # 1.0 is a float already where that is one of the choices.
    for hint in sorted(hints, key=lambda hint: hint is int and isinstance(value, float)):
        try:
            return fitted(value, hint)
        except Misfit:
            continue
    raise Misfit(" or ".join(dict.fromkeys(map(_name_of, hints))))


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


def _name_of(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    kind = Sequence if origin in (list, tuple) else origin or hint
    if kind is Sequence and parts and parts[0] in _NAMES:
        return f"a list of {_NAMES[parts[0]].removeprefix('a ')}s"
    if kind is Path:
        kind = str
    return _NAMES.get(Mapping if kind is dict else kind, inspect.formatannotation(kind))


# ---------------------------------------------------------------------- parameters


def parameters_of(target: Any) -> tuple[dict[str, Any], list[str], bool]:
    """Accepted names with their hints, required names, and whether any name at all is taken.

    A subclass that passes `**kwargs` on takes what its base classes take; what they require, it may
    give itself, but for classes of this project with `*args, **kwargs`.
    """
    accepted: dict[str, Any] = {}
    required: list[str] = []
    passes_on = True
    signatures = [vars(cls)["__init__"] for cls in _lineage(target)] or [target]
    for function in signatures:
        parameters = list(inspect.signature(function).parameters.values())
        parameters = parameters[1:] if inspect.isclass(target) else parameters
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
    return False, typing.get_type_hints(typing.get_args(hint)[0])


def _lineage(target: Any) -> Iterator[type]:
    """The project's classes, from `target` up, that have a constructor of their own."""
    for cls in target.__mro__ if inspect.isclass(target) else ():
        if cls is not object and inspect.isfunction(vars(cls).get("__init__")):
            yield cls


def _is_ours(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("taming.")


def _hints(function: Any) -> dict[str, Any]:
    """Of this project's functions; those of others are not made for checks."""
    if not _is_ours(function):
        return {}
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # a name that is imported for type checkers only
        return {}


def shorten(value: Any, most: int = 100) -> str:
    """A value as Python writes it, or the beginning of that."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
