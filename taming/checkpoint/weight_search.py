"""Where tensors that belong together lie in a file's content, and which of them are averages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from taming.checkpoint.names import Tensors, is_counter, squeezed, stripped
from taming.checkpoint.stand_ins import Inert, NumpyArray, QuantizedTensor

# Entries of checkpoints that hold tensors, but no model.
_NO_WEIGHTS = re.compile(
    r".*(optim|sched|scaler|loop|rng|random|sampler|metric|logger|hparam|hyper|config|args).*",
    re.IGNORECASE,
)
AVERAGE = re.compile(r"(?<![a-z])(ema|swa|averaged?|avg|shadow|polyak)(?![a-z])")
# Those that are averages of another one, where that is beside them (DINO, BYOL).
_PAIRS = {"teacher": "student", "target": "online"}
# What an average's own state has beside it.
_TRAINED = re.compile(r"(?<![a-z])(student|online)(?![a-z])")
DEEPEST = 4
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
    found = list(_Search(own or {}).sets_in(_named(content), "", False, 0))
    raw = {squeezed(name): name for each in found if not each.averaged for name in each.tensors}
    return [_with_dots(each, raw) if each.averaged else each for each in found]


def _with_dots(average: WeightSet, raw: Mapping[str, str]) -> WeightSet:
    """An average whose names have no dots, by the names of the `raw` weights beside it."""
    if any("." in name for name in average.tensors):
        return average
    tensors = {raw.get(squeezed(name), name): t for name, t in average.tensors.items()}
    return replace(average, tensors=tensors)


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
        if not isinstance(content, Mapping) or depth > DEEPEST or "param_groups" in content:
            return
        content = {text_of(key): value for key, value in content.items()}
        named = {k: as_tensor(t) for k, t in content.items() if k}
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
        return any(as_tensor(value[name]) is not None for name in names)

    @cached_property
    def _heads(self) -> set[str]:
        """The first parts of the model's names."""
        return {name.partition(".")[0] for name in self.own}

    def _is_average(self, key: str, beside: Collection[str]) -> bool:
        """Whether an entry, or the first part of names, says that it is an average."""
        if key in self._heads and not (key == "model_ema" and self._averages_own(beside)):
            return False
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()
        if AVERAGE.search(words) is not None:
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
        state, _ = stripped(tensors, None)
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


def text_of(key: Any) -> str:
    """A key of a mapping as a name; "" if it is none."""
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    return str(key) if isinstance(key, str | int) else ""


def as_tensor(value: Any) -> Tensor | None:
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
