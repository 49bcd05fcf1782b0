"""Which of the tensors in a file are a model's weights: the choice among all sets of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taming.checkpoint.names import OPTIONAL, Tensors, renamed, squeezed
from taming.checkpoint.shards import require_whole
from taming.checkpoint.stand_ins import Inert
from taming.checkpoint.weight_search import (
    AVERAGE,
    DEEPEST,
    WeightSet,
    as_tensor,
    text_of,
    weight_sets,
)
from taming.distributed import is_first_process
from taming.errors import UserError
from taming.weight_choice import EMA, RAW

log = logging.getLogger(__name__)

# Of several sets, what is most likely the model that others use.
_USUAL = (
    "state_dict",
    "current_model_state",
    "model_state_dict",
    "model",
    "module",
    "params",
    "net",
    "generator",
    "g",
)


def require_plain_tensors(content: Any, needed: Callable[[str], bool], source: object) -> None:
    """Refuse (`UserError`) tensors whose names say that they are `needed`, without dense content.

    Sparse and nested ones are such, and those of the device meta.
    """
    if other := _no_plain_tensor(content, needed):
        raise UserError(
            f"{source}: '{other}' is no dense tensor, but sparse, nested or without content; save "
            "it as a dense one, on the CPU"
        )


def _no_plain_tensor(content: Any, needed: Callable[[str], bool], depth: int = 0) -> str:
    for key, value in content.items() if isinstance(content, Mapping) else ():
        empty = isinstance(value, Tensor) and value.is_meta
        other = isinstance(value, Inert) and as_tensor(value) is None
        if (empty or other) and "." in str(key):
            if needed(f".{key}"):
                return str(key)
        elif depth < DEEPEST and (found := _no_plain_tensor(value, needed, depth + 1)):
            return found
    return ""


# ---------------------------------------------------------------------- averages without names


def in_order(content: Any, own: Tensors | None, source: object, *, needed: bool) -> list[WeightSet]:
    """Averages of a model's parameters in order, as `shadow_params` of torch_ema.

    Raises:
        UserError: if they are not, and are `needed`, as there is nothing else in the file.
    """
    found = dict(_shadows(content, "", 0))
    sets = []
    for label, tensors in found.items():
        if own is not None and (names := _parameters_like(tensors, own)):
            sets.append(WeightSet(label, dict(zip(names, tensors, strict=True)), True))
        elif needed and own is not None:
            count = sum(isinstance(tensor, nn.Parameter) for tensor in own.values())
            raise UserError(
                f"{source}: '{label}' are {len(tensors)} tensors without names, which are not the "
                f"{count} parameters of the model in order; save its state_dict() instead"
            )
    return sets


def _shadows(content: Any, label: str, depth: int) -> Iterator[tuple[str, list[Tensor]]]:
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return
    for key, value in content.items():
        place = f"{label}.{key}".lstrip(".")
        if isinstance(value, list | tuple) and value and AVERAGE.search(text_of(key).lower()):
            if all(isinstance(each, Tensor) for each in value):
                yield place, list(value)
        else:
            yield from _shadows(value, place, depth + 1)


def _parameters_like(tensors: list[Tensor], own: Tensors) -> list[str]:
    """The names of all parameters, or of the trained ones, or these without the loss, of which
    number and shapes are those of `tensors`; empty if there are none."""
    every = {name: tensor for name, tensor in own.items() if isinstance(tensor, nn.Parameter)}
    trained = {name: tensor for name, tensor in every.items() if tensor.requires_grad}
    for choice in (trained, every):
        for left_out in ((), OPTIONAL):
            names = [name for name in choice if not name.startswith(left_out)]
            if [own[name].shape for name in names] == [tensor.shape for tensor in tensors]:
                return names
    return []


# ---------------------------------------------------------------------- the choice among them


@dataclass(frozen=True)
class Chosen:
    """The weights to load, and what was done to find them, in words."""

    tensors: Tensors
    notes: list[str] = field(default_factory=list)


def choose(
    content: Any, source: object, own: Tensors | None = None, kind: str | None = None
) -> Chosen:
    """The weights in a file's content, by the names of a model whose `own` are known.

    Averages are preferred, unless `kind`, as of `WeightChoice`, says otherwise.

    Raises:
        UserError: if there are no weights, or none of the kind that was asked for.
    """
    require_whole(content, source)
    sets = [_fitted(each, own) for each in weight_sets(content, own)]
    sets += in_order(content, own, source, needed=not sets)
    if not sets:
        entries = f"it has {', '.join(map(repr, content))}" if _has_names(content) else "it is data"
        raise UserError(f"{source} holds no model weights ({entries})")
    raw = _best([each for each in sets if not each.averaged], own)
    average = _best([each for each in sets if each.averaged], own)
    if own and raw and average and not _is_of(average, own):
        average = None  # of another part, such as the diffusion model beside a first stage
    if kind == EMA and average is None and AVERAGE.search(Path(str(source)).stem.lower()):
        average = raw  # a file of its own
    wanted = {RAW: raw, EMA: average, None: average or raw}[kind]
    if wanted is None:
        there, word = (raw or average), "moving average (EMA)" if kind == EMA else "raw weights"
        raise UserError(f"{source} holds no {word}, only {_place(there)}; leave --weights out")
    notes = [] if wanted.label in ("", "state_dict") else [f"those of {_place(wanted)}"]
    if raw and average and wanted is average:
        notes = [f"the moving average {_place(average)} (--weights raw takes {_place(raw)})"]
        return Chosen(_overlaid(raw.tensors, average.tensors), [*notes, *average.notes])
    return Chosen(wanted.tensors, [*notes, *wanted.notes])


def _has_names(content: Any) -> bool:
    return isinstance(content, Mapping) and 0 < len(content) <= 20


def _place(found: WeightSet | None) -> str:
    return f"'{found.label or 'the whole file'}'" if found else "nothing"


def _fitted(found: WeightSet, own: Tensors | None) -> WeightSet:
    renaming = renamed(found.tensors, own)
    tensors = renaming.tensors
    if own and found.averaged and not tensors.keys() & own.keys():  # names without dots
        by_name = {squeezed(name): name for name in own}
        tensors = {by_name.get(squeezed(name), name): tensor for name, tensor in tensors.items()}
    return WeightSet(found.label, tensors, found.averaged, tuple(renaming.notes))


def _best(sets: list[WeightSet], own: Tensors | None) -> WeightSet | None:
    """The set that has most of a model's weights, or the one with the most usual place."""

    def rank(each: WeightSet) -> tuple[int, int, int]:
        last = each.label.rpartition(".")[2]
        usual = -_USUAL.index(last) if last in _USUAL else -len(_USUAL)
        return _overlap(each, own) if own else 0, usual, len(each.tensors)

    return max(sets, key=rank, default=None)


def _overlap(found: WeightSet, own: Tensors) -> int:
    names = {squeezed(name) for name in own}
    return sum(squeezed(name) in names for name in found.tensors)


def _is_of(found: WeightSet, own: Tensors) -> bool:
    """Whether the tensors that share a name with a model's have its shapes, most of them."""
    shapes = {squeezed(name): tensor.shape for name, tensor in own.items()}
    shared = {squeezed(name): t.shape for name, t in found.tensors.items()}
    fits = [shapes[name] == shape for name, shape in shared.items() if name in shapes]
    return any(fits) and 2 * sum(fits) >= len(fits)


def _overlaid(raw: Tensors, average: Tensors) -> dict[str, Tensor]:
    """Averaged weights, by the names of the raw ones; raw ones of which there is no average.

    Averages leave out buffers, and latent diffusion's have names without dots.
    """
    by_name = {squeezed(name): tensor for name, tensor in average.items()}
    return {
        name: averaged
        if (averaged := by_name.get(squeezed(name))) is not None and averaged.shape == tensor.shape
        else tensor
        for name, tensor in raw.items()
    }


@lru_cache  # a file may be read more than once
def say(source: str, notes: Collection[str]) -> None:
    """One line about what was done to find weights."""
    if is_first_process():
        log.warning("%s: %s", source, ", ".join(notes))
