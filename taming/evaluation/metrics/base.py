"""Accumulators of images and of features, and what describes a metric of sets of images.

An accumulator counts images in any order and any portions, and its state is a dict of arrays. To
restore one, a new one merges the state; to join the parts of several processes, one of them merges
the states of the others. What depends on an order goes by the images' indices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from taming.evaluation.sources.images import SourceImage, State

SEED = 2020  # torch-fidelity's, of random splits and subsets


class Accumulator(Protocol):
    """Counts something of images, none of which comes twice."""

    def state_dict(self) -> State:
        """Everything that was counted, as arrays."""

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Add what an accumulator of other images of the set had in its `state_dict`."""


class CountsByClass(dict[int, np.ndarray]):
    """Rows of three integers by class, added up; an `Accumulator`."""

    def add(self, labels: Iterable[int], rows: Iterable[np.ndarray]) -> None:
        for label, row in zip(labels, rows, strict=True):
            self[label] = self.get(label, 0) + row

    def state_dict(self) -> State:
        rows = [self[label] for label in sorted(self)]
        labels = np.array(sorted(self), np.int64)
        return {"labels": labels, "rows": np.array(rows, np.int64).reshape(-1, 3)}

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.add(state["labels"].tolist(), state["rows"])


class ImageAccumulator(Accumulator, Protocol):
    """An accumulator of the images of a set."""

    def update(self, images: Sequence[SourceImage]) -> None:
        """Count images of one size."""


class FeatureAccumulator(Accumulator, Protocol):
    """An accumulator of features, one row per image."""

    of_sized_sets: ClassVar[bool] = False  # whether it is made with a set's number of `images`

    def update(self, indices: Tensor, features: Tensor, labels: Tensor | None = None) -> None:
        """Count images.

        Args:
            indices: int64 [B], their places in the set.
            features: float [B, D].
            labels: int64 [B], their classes; `NO_LABEL` for images without one.
        """


@dataclass(frozen=True)
class MetricSettings:
    """Settings of a metric: subclasses have fields made by `flag`, whole numbers of at least 1."""


S = TypeVar("S", bound=MetricSettings)


@dataclass(frozen=True)
class Metric(Generic[S]):
    """A number, or a few, of a set of samples and mostly of a reference."""

    name: str  # what `--metrics` takes and results have
    title: str  # what it is, for `--help`
    accumulator: type[FeatureAccumulator]  # what it needs of each set
    # (samples' accumulator, reference's or None, settings) -> a number, or a dict of numbers
    compute: Callable[[Any, Any, S], Any]
    settings: type[S]  # a dataclass of its flags
    options: Mapping[str, str] = field(default_factory=dict)  # of the accumulator: setting by name
    smallest_set: Callable[[S], int] | None = None  # how many images each set has at least; None: 2
    smallest_flag: str | None = None  # a flag that lowers that number
    facts: Mapping[str, Any] = field(default_factory=dict)  # what else decides it, for results
    needs_reference: bool = True  # whether it compares two sets
    accepts_statistics: bool = False  # whether mean and covariance (`Statistics`) are enough
    layer_of: str | None = None  # torch-fidelity's metric whose layer it takes; None: `name`
    of_manifold: bool = False  # compares neighborhoods: see `--prc_extractor`
