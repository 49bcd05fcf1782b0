"""Which tensors of a file are a model's weights: where they lie in it, and averages beside them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taming.checkpoint.names import OPTIONAL, Tensors, is_counter, renamed, squeezed
from taming.checkpoint.shards import require_whole
from taming.checkpoint.stand_ins import Inert, NumpyArray, QuantizedTensor
from taming.distributed import is_first_process
from taming.errors import UserError
from taming.weight_choice import EMA, RAW

log = logging.getLogger(__name__)

# Entries of checkpoints that hold tensors, but no model.
_NO_WEIGHTS = re.compile(
    r".*(optim|sched|scaler|loop|rng|random|sampler|metric|logger|hparam|hyper|config|args).*",
    re.IGNORECASE,
)
_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|averaged?|avg|shadow|polyak)(?![a-z])")
# Those that are averages of another one, where that is beside them (DINO, BYOL).
_PAIRS = {"teacher": "student", "target": "online"}
# What an average's own state has beside it.
_TRAINED = re.compile(r"(?<![a-z])(student|online)(?![a-z])")
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
_DEEPEST = 4
_MOST_VISITS = 20  # of a module that is a part of several others, or of itself


@dataclass(frozen=True)
class WeightSet:
    """Tensors that belong together; `label` says where in the file, for people."""

    label: str
    tensors: Tensors
    averaged: bool = False
    notes: tuple[str, ...] = ()


def weight_sets(content: Any, own: Tensors | None = None) -> list[WeightSet]:
    """All sets of a file's content, averages among them; of a model whose `own` are known, none of
    its parts is an average, whatever it is called."""
    return list(_Search(own or {}).sets_in(_named(content), "", False, 0))


def _named(content: Any) -> Any:
    """The entries of lists by their numbers, if they are mappings."""
    if not isinstance(content, list | tuple):
        return content
    return {str(i): each for i, each in enumerate(content) if isinstance(each, Mapping)}


@dataclass(frozen=True)
class _Search:
    """For sets of weights, for a model with the tensors `own`."""

    own: Tensors

    def sets_in(self, content: Any, label: str, averaged: bool, depth: int) -> Iterator[WeightSet]:
        if isinstance(content, Inert):
            yield from self._in_object(content, label, averaged, depth)
        if not isinstance(content, Mapping) or depth > _DEEPEST or "param_groups" in content:
            return
        content = {_text(key): value for key, value in content.items()}
        named = {k: _as_tensor(t) for k, t in content.items() if k}
        tensors = {name: tensor for name, tensor in named.items() if tensor is not None}
        if any("." in name for name in tensors) or len(tensors) * 2 > len(content):
            yield from self._split(tensors, label, averaged)
        yield from self._below(content, label, averaged, depth)

    def _below(
        self, content: Mapping[str, Any], label: str, averaged: bool, depth: int
    ) -> Iterator[WeightSet]:
        """The sets in a mapping's entries, and what these are together if they are parts."""
        parts: dict[str, Tensor] = {}
        for key, value in content.items():
            if not key or (_NO_WEIGHTS.fullmatch(key) and not self._has_own(value)):
                continue
            average = averaged or self._is_average(key, content)
            # As Lightning's WeightAveraging saves it.
            average |= key == "state_dict" and "averaging_state" in content
            place = f"{label}.{key}".lstrip(".")
            for found in self.sets_in(_named(value), place, average, depth + 1):
                if found.averaged or "callback" not in place:
                    yield found
                if not average and found.label == place:
                    parts |= {f"{key}.{name}": tensor for name, tensor in found.tensors.items()}
        if len({name.partition(".")[0] for name in parts}) > 1:  # a file of parts, as encoder
            yield WeightSet(f"{label}.*".lstrip("."), parts, averaged)

    def _has_own(self, value: Any) -> bool:
        """Whether the model's weights lie in an entry, whatever that is called."""
        names = self.own.keys() & set(value) if isinstance(value, Mapping) else ()
        return any(_as_tensor(value[name]) is not None for name in names)

    def _is_average(self, key: str, beside: Collection[str]) -> bool:
        """Whether an entry, or the first part of names, says that it is an average."""
        heads = {name.partition(".")[0] for name in self.own}
        if key in heads and not (key == "model_ema" and self._averages_own(beside)):
            return False
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()
        if _AVERAGE.search(words) is not None:
            return True
        return any(
            re.search(rf"(?<![a-z]){name}(?![a-z])", words) and words.replace(name, other) in beside
            for name, other in _PAIRS.items()
        )

    def _averages_own(self, names: Collection[str]) -> bool:
        """Whether `model_ema.` is what latent diffusion calls so, and no part of the model."""
        tails = {squeezed(n.partition(".")[2]) for n in names if n.startswith("model_ema.")}
        return not tails or not tails.isdisjoint(map(squeezed, self.own))

    def _in_object(
        self, content: Inert, label: str, averaged: bool, depth: int
    ) -> Iterator[WeightSet]:
        """Of a model that was pickled whole, or an object that keeps weights as an attribute."""
        state = content.state if isinstance(content.state, Mapping) else {}
        if "_parameters" in state or "_modules" in state:
            if tensors := dict(_tensors_of(content, "")):
                yield from self._split(tensors, label, averaged)
        elif state:
            yield from self.sets_in(state, label, averaged, depth + 1)

    def _split(self, tensors: Tensors, label: str, averaged: bool) -> Iterator[WeightSet]:
        """A set, or two if a part of the names says that it is an average, as `model_ema.`."""
        state = renamed(tensors, None).tensors
        heads = {name.partition(".")[0] for name in state if "." in name}
        beside = heads | {name for name in state if name.startswith("model_ema.")}
        found = sorted(head for head in heads if self._is_average(head, beside))
        if not found:
            yield WeightSet(label, tensors, averaged or "n_averaged" in tensors)
            return
        average = {name for name in state if name.partition(".")[0] in found and "." in name}
        rest = {name: tensor for name, tensor in state.items() if name not in average}
        if any(not is_counter(name, tensor) for name, tensor in rest.items()):
            trained = any(_TRAINED.search(head) for head in heads)
            yield WeightSet(label, rest, averaged and not trained)
        own = {name.partition(".")[2]: state[name] for name in sorted(average)}
        weights = {name: tensor for name, tensor in own.items() if not is_counter(name, tensor)}
        yield WeightSet(f"{label}.{found[0]}".lstrip("."), weights, True)


def _text(key: Any) -> str:
    """A key of a mapping as a name; "" if it is none."""
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    return str(key) if isinstance(key, str | int) else ""


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
        other = isinstance(value, Inert) and _as_tensor(value) is None
        if (empty or other) and "." in str(key):
            if needed(f".{key}"):
                return str(key)
        elif depth < _DEEPEST and (found := _no_plain_tensor(value, needed, depth + 1)):
            return found
    return ""


def _as_tensor(value: Any) -> Tensor | None:
    """A tensor, quantized too, or an array of numbers as a tensor."""
    if isinstance(value, NumpyArray | QuantizedTensor):
        return value.tensor()
    return value if isinstance(value, Tensor) else None


def _tensors_of(
    module: Any, prefix: str, visits: Counter[int] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The `state_dict` of a module that was pickled whole."""
    visits = Counter() if visits is None else visits
    visits[id(module)] += 1
    if not isinstance(module, Inert) or visits[id(module)] > _MOST_VISITS:
        return
    state = module.state if isinstance(module.state, Mapping) else {}
    for kind in ("_parameters", "_buffers"):
        for name, tensor in dict(state.get(kind) or {}).items():
            if isinstance(tensor, Tensor):
                yield f"{prefix}{name}", tensor.detach()
    for name, child in dict(state.get("_modules") or {}).items():
        yield from _tensors_of(child, f"{prefix}{name}.", visits)


# ---------------------------------------------------------------------- averages without names


def in_order(content: Any, own: Tensors | None, source: object, *, needed: bool) -> list[WeightSet]:
    """Averages such as `shadow_params` of torch_ema, lists of those of a model's parameters in order.

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
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    for key, value in content.items():
        place = f"{label}.{key}".lstrip(".")
        if isinstance(value, list | tuple) and value and _AVERAGE.search(_text(key).lower()):
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
    if kind == EMA and average is None and _AVERAGE.search(Path(str(source)).stem.lower()):
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
