"""What is counted of a set of images, in parts that can be merged and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from taming.evaluation.cache import State
from taming.evaluation.sources.picture import Content, Picture


class Tally(Protocol):
    """What is counted of a set of images, in parts that can be merged and kept."""

    content: Content

    def add(self, pictures: Sequence[Picture]) -> None:
        """Count pictures of one size."""

    def merge(self, other: Any) -> None:
        """Add what another tally counted of other images of the same set."""

    def state(self) -> State:
        """All of it as arrays."""


def joined_states(states: Mapping[str, Mapping[str, np.ndarray]]) -> State:
    """{"a/b": array} of {"a": {"b": array}}."""
    return {f"{name}/{key}": a for name, state in states.items() for key, a in state.items()}


def split_states(state: Mapping[str, np.ndarray]) -> dict[str, State]:
    """The inverse of `joined_states`, but for empty states."""
    states: dict[str, State] = {}
    for path, array in state.items():
        name, _, key = path.partition("/")
        states.setdefault(name, {})[key] = array
    return states


class CountedTally:
    """A `Tally` of one accumulator; subclasses say how pictures are added to it."""

    def __init__(self, images: int, counted: Any) -> None:
        self.content, self.counted = Content(images), counted

    def add(self, pictures: Sequence[Picture]) -> None:
        """Count pictures of one size."""
        raise NotImplementedError

    def merge(self, other: CountedTally) -> None:
        """Add what `other` counted of other images of the set."""
        self.content.merge(other.content)
        self.counted.merge(other.counted)

    def state(self) -> State:
        """All of it as arrays."""
        return joined_states({"content": self.content.state(), "counted": self.counted.state()})

    def restore(self, state: State) -> None:
        """Be what `state` was taken of."""
        parts = split_states(state)
        self.content = Content.from_state(parts["content"])
        self.counted = type(self.counted).from_state(parts["counted"])
