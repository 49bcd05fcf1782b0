"""Keys of a config that nothing reads are refused, with the nearest path that means something."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf

from taming.config_files import Part, Place, as_key
from taming.config_targets import target_of
from taming.config_values import Arguments, parameters_of, rules_of
from taming.errors import UserError
from taming.trust import canonical_name, is_dotted

_CONFIG = ("target", "params")
# The keys that there may be at a place. Configs elsewhere have those of `_CONFIG`; parameters are
# checked against the signature of their target.
_KEYS: dict[Place, Sequence[str]] = {
    ("model",): (*_CONFIG, "base_learning_rate"),
    ("data",): _CONFIG,
    ("lightning",): (
        *("trainer", "callbacks", "modelcheckpoint", "logger"),
        *("seed", "scale_lr", "skip_nonfinite"),
    ),
    ("lightning", "logger"): _CONFIG,
    ("lightning", "modelcheckpoint"): _CONFIG,
}
_CALLBACKS = ("lightning", "callbacks")
# Callbacks that there are without a target in the config.
OWN_CALLBACKS = ("checkpoints", "image_logger", "learning_rate_logger", "setup_callback")
_TRAINER = ("lightning", "trainer")


def check_keys(merged: DictConfig, parts: Sequence[Part], sections: Sequence[str]) -> None:
    """Refuse keys in `parts`, which `merged` is made of, that have no effect.

    The configs in a run's folder have had their effect already; only their sections are checked.

    Raises:
        UserError: for the first such key.
    """
    whole = OmegaConf.to_container(merged)
    for part in parts:
        own: Any = OmegaConf.to_container(part.config)
        for place, value, known in _unread(own, whole, sections):
            if part.stored and len(place) > 1:
                continue
            rest = _only_place(value)
            near = _nearest(place, rest, whole, known)
            hint = f"did you mean '{as_key(near)}'?" if near else f"known are {', '.join(known)}"
            raise UserError(f"{part.source}: there is no key '{as_key((*place, *rest))}'; {hint}")


def _unread(
    own: Any, whole: Any, sections: Sequence[str]
) -> Iterator[tuple[Place, Any, Sequence[str]]]:
    """The keys without effect: their places, values, and what could stand there instead."""
    pending: list[tuple[Place, Any, Any, bool]] = [((), own, whole, True)]
    while pending:
        place, node, merged, ours = pending.pop()
        known = sections if not place else _known(place, merged, ours)
        if known is not None and _target(merged):
            ours = canonical_name(_target(merged)).startswith("taming.")
        for key, value in _entries(node):
            below = dict(_entries(merged)).get(key)
            own_callback = place == _CALLBACKS and (_target(below) or below == "???")
            if known is not None and key not in known and not own_callback:
                yield (*place, key), value, known
            elif isinstance(value, dict | list):
                pending.append(((*place, key), value, below, ours))


def _entries(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, Mapping):
        yield from node.items()
    elif isinstance(node, list):
        yield from enumerate(node)


def _target(node: Any) -> str:
    """The target of a config; empty for anything else."""
    target = node.get("target") if isinstance(node, Mapping) else None
    return target if isinstance(target, str) and is_dotted(target) else ""


def _known(place: Place, node: Any, ours: bool) -> Sequence[str] | None:
    """The keys that there may be; None if there are others.

    `ours` is whether the place lies in the parameters of a class of this project: those of others
    may have a `target` that means something else.
    """
    if place in _KEYS:
        return _KEYS[place]
    if place == _CALLBACKS:
        return OWN_CALLBACKS
    if place[:-1] == _CALLBACKS or (ours and _target(node)):
        return _CONFIG
    return None


def _only_place(value: Any) -> Place:
    """The place of the single entry in a tree of single entries, as overrides make them."""
    place: Place = ()
    while isinstance(value, dict) and len(value) == 1:
        ((key, value),) = value.items()
        place = (*place, key)
    return place


# ---------------------------------------------------------------------- the nearest path


def _nearest(place: Place, rest: Place, whole: Any, known: Sequence[str]) -> Place | None:
    parent, key = place[:-1], str(place[-1])
    node = whole
    for part in parent:
        node = dict(_entries(node)).get(part)
    if known == _CONFIG and not _target(node) and not _close(key, known):
        return (*parent, "params", key, *rest)  # of a class that is there without a target
    paths = [path for path in _valid_paths(whole) if path[: len(place)] != place]
    same = [path for path in paths if path[-1] == key]
    if same:
        return (*max(same, key=lambda path: (_shared(path, place), -len(path))), *rest)
    if close := _close(key, known):
        return (*parent, close[0], *rest)
    for near in ([path for path in paths if path[: len(parent)] == parent], paths):
        names = {str(path[-1]): path for path in reversed(near)}
        if close := difflib.get_close_matches(key, names, n=1, cutoff=0.7):
            return (*names[close[0]], *rest)
    return None


def _close(key: str, names: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(key, names, n=1)


def _shared(path: Place, other: Place) -> int:
    """How long the common beginning of two places is."""
    equal = [a == b for a, b in zip(path, other, strict=False)]
    return (*equal, False).index(False)


def _valid_paths(node: Any, place: Place = ()) -> Iterator[Place]:
    """What is in a config, and what could be among the parameters of its targets."""
    for key, value in _entries(node):
        yield (*place, key)
        yield from _valid_paths(value, (*place, key))
    if _target(node):
        with suppress(UserError, TypeError, ValueError):
            yield from _parameter_paths(target_of(node, None), (*place, "params"))
    if not place:
        trainer = target_of({"target": "pytorch_lightning.Trainer"}, None)
        yield from _parameter_paths(trainer, _TRAINER)


def _parameter_paths(target: Any, place: Place) -> Iterator[Place]:
    accepted, _, _ = parameters_of(target)
    for name, hint in accepted.items():
        yield (*place, name)
        for rule in rules_of(hint):
            for inner in rule.targets if isinstance(rule, Arguments) else ():
                yield from _parameter_paths(inner, (*place, name))
