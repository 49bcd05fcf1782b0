"""A config is checked, with all configs that lie in it, before anything of it is built.

The schema of a class is its signature; `taming.config_values` says what hints may say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from taming.config_targets import (
    check_are_names,
    config_error,
    current_key,
    did_you_mean,
    inside,
    is_installed,
    params_of,
    target_of,
)
from taming.config_values import (
    Arguments,
    Builds,
    Misfit,
    OutOfRange,
    fitted,
    parameters_of,
    rules_of,
)
from taming.errors import UserError, shorten


def check_node(
    node: Any, key: str, expects: str | None = None, extra: Collection[str] = ()
) -> None:
    """Check a config, `target` and `params`, and those among its parameters, without building.

    Args:
        node: dicts and lists, with nothing to be resolved.
        key: the config's place inside its parent, for errors.
        expects: one of `taming.config.KINDS`.
        extra: names of parameters that are given besides.

    Raises:
        UserError: naming the place, the value there, and what is possible.
    """
    with inside(key):
        target = target_of(node, expects)
        with inside("params"):
            own = params_of(node)
            arguments_for(target, str(node["target"]), own, {**dict.fromkeys(extra), **own})


def arguments_for(
    target: Any, name: str, own: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """`params`, of which `own` are the config's, as the signature of `target` wants them.

    Raises:
        UserError: for a name that it does not have, one that it needs, and a value that is not what
            its hint says.
    """
    _check_parameters(target, name, params)
    accepted, required, _ = parameters_of(target)
    for param in required:
        if param not in params:
            place = f"{current_key()}.{param}".strip(".")
            raise config_error(f"{name} needs the parameter '{param}'; set {place}")
    arguments = dict(params)
    for param in sorted(own.keys() & accepted.keys()):
        with inside(param):
            value = _fitted(params[param], own[param], accepted[param])
            arguments[param] = _with_nested(value, accepted[param])
    return arguments


def _check_parameters(target: Any, name: str, params: Mapping[str, Any]) -> None:
    accepted, _, open_ended = parameters_of(target)
    for param in params:
        if param not in accepted and not open_ended:
            raise config_error(f"{name} has no parameter '{param}'{did_you_mean(param, accepted)}")


def check_parameter_names(node: Any) -> None:
    """Check the names of all parameters in a config and in those that lie in it, not their values,
    which may be open (`???`); raises `UserError`."""
    if isinstance(node, Mapping):
        if isinstance(node.get("target"), str) and isinstance(node.get("params"), Mapping):
            target = None
            with suppress(UserError):  # of a target that is none, all else may be as it should
                target = target_of(node, None)
            if target is not None:
                with inside("params"):
                    _check_parameters(target, node["target"], node["params"])
        for key, value in node.items():
            with inside(str(key)):
                check_parameter_names(value)


def _fitted(value: Any, written: Any, hint: Any) -> Any:
    try:
        return fitted(value, hint)
    except OutOfRange as reason:
        raise UserError(f"{current_key()} is {shorten(value)}; it must be {reason}") from None
    except Misfit as misfit:
        raise config_error(f"{misfit} is expected here, not {shorten(written)}") from None


def _with_nested(value: Any, hint: Any) -> Any:
    """Check a parameter that is a config, or the arguments of others, at the current place.

    Of the latter, whole numbers that were written like 1e3 are returned as such.
    """
    if not isinstance(value, Mapping):
        return value
    for rule in rules_of(hint):
        if isinstance(rule, Builds) and rule.kind:
            if not rule.dispensable or is_installed(value.get("target")):
                check_node(value, "", rule.kind)
        elif isinstance(rule, Arguments):
            arguments = check_arguments(value, rule)
            whole = {n: v for n, v in arguments.items() if type(v) is int is not type(value[n])}
            value = {**value, **whole} if whole else value
    return value


def check_arguments(value: Any, rule: Arguments) -> dict[str, Any]:
    """A mapping at the current place as the arguments that all the rule's classes take."""
    check_are_names(value)
    arguments = dict(value)
    for target in rule.targets:
        arguments = arguments_for(target, target.__name__, value, arguments)
    return arguments
