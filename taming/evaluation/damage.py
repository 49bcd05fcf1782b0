"""Damaged images of a set are left out, in all processes, and remembered for the next time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from taming.devices import own_share
from taming.distributed import gather_objects
from taming.errors import UserError
from taming.evaluation.sources.images import ImageSource, State, key_of


class Storage(Protocol):
    """Where arrays are kept by key."""

    def load(self, key: str) -> State | None: ...

    def save(self, key: str, state: Mapping[str, np.ndarray]) -> None: ...


def of_rank_0(value: Any) -> Any:
    """The value that the process of rank 0 has."""
    return gather_objects(value)[0] if own_share()[1] > 1 else value


def recall_damage(storage: Storage, source: ImageSource, key: str) -> None:
    """Note as damaged what an earlier evaluation of the same set, by `key`, found to be so."""
    state = storage.load(key_of(damaged=key)) if own_share()[0] == 0 else None
    if state is not None and int(state["size"]) == len(source):
        found = zip(state["indices"].tolist(), state["sentences"].tolist(), strict=True)
        source.damaged.update(found)


def gather_damage(source: ImageSource) -> None:
    """Note in all processes what each of them found to be damaged."""
    for damaged in gather_objects(source.damaged) if own_share()[1] > 1 else ():
        source.damaged.update(damaged)


def leave_out(storage: Storage, source: ImageSource, key: str) -> list[str]:
    """Leave out what is damaged; returns a sentence for each.

    Numbers are then those of the set without these files, whatever depends on its size. Raises
    `UserError` if nothing is left.
    """
    gather_damage(source)
    indices = sorted(source.damaged)
    if not indices:
        return []
    if own_share()[0] == 0:
        texts = np.array([source.damaged[index] for index in indices], dtype=np.str_)
        state = {"indices": np.array(indices), "sentences": texts}
        storage.save(key_of(damaged=key), {**state, "size": np.array(len(source))})
    sentences = source.leave_out_damaged()
    if not len(source):
        raise UserError(f"none of the images can be used; {sentences[0]}")
    return sentences
