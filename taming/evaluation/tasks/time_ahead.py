"""How long an evaluation will take, before it starts: by short trials of what it does most."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from taming.devices import own_share
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.sources.conditioned_run import ConditionedRunSource
from taming.evaluation.sources.images import ALONE, ImageSource, SourceImage, stack_pixels
from taming.evaluation.sources.run import RunSource
from taming.evaluation.sources.scenes import SampledScenes
from taming.limits import readable_time
from taming.sampling.estimate import estimated_seconds
from taming.sampling.inputs import inputs_of_item
from taming.sampling.requests import request_for_condition, requests_for_labels, requests_for_scene
from taming.sampling.sizes import tokens_for, trained_shape

Counting = Callable[[Sequence[SourceImage]], object]


@dataclass(frozen=True)
class Part:
    """What is done with so many images, and the seconds that it takes all processes together."""

    doing: str  # such as "sampling"
    images: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.doing} {self.images:,} images takes about {readable_time(self.seconds)}"


def part_of_pass(doing: str, source: ImageSource, count: Counting, batch_size: int) -> Part:
    """Of going through a set, by its first batch, which is counted twice as the first warms up.

    Raises UserError if the images cannot be read.
    """
    tried = min(batch_size, len(source))
    rest, seconds = range(tried, len(source)), 0.0
    source.pass_over_damage()
    for _ in range(2):
        start = time.monotonic()
        for batch in source.batches(tried, ALONE, rest):
            count(batch)
        seconds = time.monotonic() - start
    batches = -(-len(source) // (tried * own_share()[1]))
    return Part(doing, len(source), seconds * batches)


def extracting(extractors: Sequence[Extractor]) -> Counting:
    """The features of a batch, as the metrics take them."""

    def count(batch: Sequence[SourceImage]) -> None:
        pixels = stack_pixels(batch)
        for extractor in dict.fromkeys(extractors):
            extractor(pixels)

    return count


def part_of_sampling(source: RunSource | SampledScenes, batch_size: int) -> Part:
    """Of the samples of a run, or of scenes."""
    seconds = (
        scene_seconds(source, batch_size)
        if isinstance(source, SampledScenes)
        else sampling_seconds(source, batch_size)
    )
    return Part("sampling", len(source), seconds)


def scene_seconds(source: SampledScenes, batch_size: int) -> float:
    """Seconds that sampling all scenes takes, shared by the processes: see `estimated_seconds`."""
    model, layouts, batch = source.model, source.layouts, min(batch_size, len(source))
    shown = range(-(-batch // source.per_layout))
    numbers = range(source.per_layout)
    every = (
        request
        for layout in shown
        for request in requests_for_scene(layouts[layout][0], layouts.builder, layout, numbers)
    )
    return estimated_seconds(
        model,
        list(islice(every, batch)),
        source.settings,
        batch_size,
        source.shape or trained_shape(model),
        count=-(-len(source) // own_share()[1]),
    )


def sampling_seconds(source: RunSource, batch_size: int) -> float:
    """Seconds that sampling all images of a run takes, by a short trial: see `estimated_seconds`.

    With candidates that are rejected, and shared by the processes.
    """
    plan, model = source.plan, source.model
    kept, tried = plan.group
    count = -(-len(source) * tried // (kept * own_share()[1]))
    shape = tokens_for(model, plan.size) or trained_shape(model)
    if isinstance(source, ConditionedRunSource):
        numbers = source.kept[: min(batch_size, len(source))]
        inputs = [inputs_of_item(model, source.dataset, number) for number in numbers]
        alike = [one for one in inputs if one.shape == inputs[0].shape]
        requests = [request_for_condition(model, i.c, i.number, i.shape) for i in alike]
        shape = inputs[0].shape
    else:
        every = requests_for_labels(model, source.labels, plan.num_samples)
        requests = list(islice(every, min(batch_size, count)))
    return estimated_seconds(model, requests, plan.settings, batch_size, shape, count=count)
