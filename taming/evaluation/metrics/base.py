"""Accumulators of images and of features, and the description of a metric of sets of images.

An accumulator counts images in any order and any portions, and its state is a dict of arrays. To
restore one, a new one merges the state; to join the parts of several processes, one of them merges
the states of the others. What depends on an order goes by the images' indices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor
from typing_extensions import Self

from taming.errors import UserError
from taming.evaluation.cache import State, key_of
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.sources.image import SourceImage, indices_of, labels_of, stack_pixels

SEED = 2020  # torch-fidelity's, of random splits and subsets


class Accumulator(Protocol):
    """Counts something of images, none of which comes twice."""

    def compute(self) -> Any:
        """What was counted, as numbers; UserError for too few images."""

    def state_dict(self) -> State:
        """Everything that was counted, as arrays."""

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Add what an accumulator of other images of the set had in its `state_dict`."""


class ImageAccumulator(Accumulator, Protocol):
    """An accumulator of the images of a set."""

    def update(self, images: Sequence[SourceImage]) -> None:
        """Count images of one size."""


class FeatureAccumulator(Accumulator, Protocol):
    """An accumulator of features, one row per image."""

    @classmethod
    def for_set(cls, images: int, **options: int) -> Self:
        """An empty accumulator for a set of `images` images."""
        return cls(**options)

    def update(self, indices: Tensor, features: Tensor, labels: Tensor | None = None) -> None:
        """Count images.

        Args:
            indices: int64 [B], their places in the set.
            features: float [B, D].
            labels: int64 [B], their classes; `NO_LABEL` for images without one.
        """


A = TypeVar("A", bound=Accumulator)


class DerivedAccumulator(Generic[A]):
    """An `ImageAccumulator` that counts something derived from images by another accumulator.

    Subclasses have `update`.
    """

    def __init__(self, counted: A) -> None:
        self.counted = counted

    def compute(self) -> A:
        return self.counted

    def state_dict(self) -> State:
        return self.counted.state_dict()

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.counted.merge_state(state)


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


@dataclass(frozen=True)
class FeatureRequest:
    """An accumulator of one layer's features that is wanted of a set.

    Requests that are equal are fulfilled once, for whatever number of metrics.

    Attributes:
        accumulator: a class of feature accumulators.
        options: of its `for_set`, by name.
    """

    accumulator: type[FeatureAccumulator]
    extractor: Extractor
    layer: str
    options: tuple[tuple[str, int], ...] = ()

    def key(self, content_key: str) -> str:
        """Hash of all that decides the accumulator's state."""
        extractor = {k: v for k, v in self.extractor.describe().items() if k != "layers"}
        name = f"{self.accumulator.__module__}.{self.accumulator.__qualname__}"
        setting = [name, self.layer, self.options]
        return key_of(content=content_key, extractor=extractor, setting=setting)

    def make(self, images: int) -> FeatureAccumulator:
        """The empty accumulator for a set of `images` images."""
        return self.accumulator.for_set(images, **dict(self.options))

    def update(
        self,
        accumulator: FeatureAccumulator,
        images: Sequence[SourceImage],
        features: Mapping[str, Tensor],
    ) -> None:
        """Count `images`, whose features are given per layer."""
        accumulator.update(indices_of(images), features[self.layer], labels_of(images))


class FeatureAccumulators:
    """The accumulators of several requests: an `ImageAccumulator` that extracts features once."""

    def __init__(self, requests: Sequence[FeatureRequest], images: int) -> None:
        self.parts = {request: request.make(images) for request in requests}

    def update(self, images: Sequence[SourceImage]) -> None:
        pixels = stack_pixels(images)
        extractors = dict.fromkeys(request.extractor for request in self.parts)
        features = {extractor: extractor(pixels) for extractor in extractors}
        for request, accumulator in self.parts.items():
            request.update(accumulator, images, features[request.extractor])

    def compute(self) -> dict[FeatureRequest, FeatureAccumulator]:
        return self.parts

    def state_dict(self) -> State:
        parts = enumerate(self.parts.values())
        return joined_states({str(number): part.state_dict() for number, part in parts})

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        states = split_states(state)
        for number, part in enumerate(self.parts.values()):
            part.merge_state(states.get(str(number), {}))


@dataclass(frozen=True)
class MetricSettings:
    """Settings of a metric: subclasses have fields made by `flag`, whole numbers of at least 1.

    Raises:
        UserError: for smaller numbers.
    """

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise UserError(f"--{name} must be at least 1, not {value}")


S = TypeVar("S", bound=MetricSettings)


@dataclass(frozen=True)
class Metric(Generic[S]):
    """A number, or a few, of a set of samples and mostly of a reference.

    Attributes:
        name: what `--metrics` takes and results have.
        title: what it is, for `--help`.
        accumulator: what it needs of each set.
        compute: (samples' accumulator, reference's, settings) -> a number, or a dict of numbers.
            The reference's is None if `needs_reference` is false.
        settings: a dataclass of its flags.
        options: of the accumulator's `for_set`, from the settings.
        smallest_set: how many images each set has at least.
        smallest_flag: a flag that lowers that number.
        facts: what else decides it, for results.
        needs_reference: whether it compares two sets.
        accepts_statistics: whether mean and covariance (`Statistics`) are enough of a set.
        layer_of: torch-fidelity's metric whose layer of the extractor it takes; by default the one
            of its own name.
        of_manifold: whether it compares neighborhoods, for which there may be another extractor
            (`--prc_extractor`; VGG16 by default).
    """

    name: str
    title: str
    accumulator: type[FeatureAccumulator]
    compute: Callable[[Any, Any, S], Any]
    settings: type[S]
    options: Callable[[S], Mapping[str, int]] = lambda settings: {}
    smallest_set: Callable[[S], int] = lambda settings: 2
    smallest_flag: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    needs_reference: bool = True
    accepts_statistics: bool = False
    layer_of: str | None = None
    of_manifold: bool = False

    def request(self, extractor: Extractor, layer: str, settings: S) -> FeatureRequest:
        """What it needs of a set."""
        options = tuple(self.options(settings).items())
        return FeatureRequest(self.accumulator, extractor, layer, options)

    def describe(self, settings: S) -> dict[str, Any]:
        """What decides the numbers, as JSON values."""
        return {**asdict(settings), **self.facts}
