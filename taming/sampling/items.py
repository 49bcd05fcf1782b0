"""Samples for the conditions of a dataset, item by item, of whatever sizes these have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import TypeVar

from taming.errors import DamagedImage, sentence
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling.engine import OnStep, Sample, sample_images
from taming.sampling.estimate import announced
from taming.sampling.inputs import SampleInputs
from taming.sampling.requests import Request
from taming.sampling.settings import SampleSettings

T = TypeVar("T")


def undamaged(
    load: Callable[[int], T], numbers: Iterable[int], left_out: dict[int, str]
) -> Iterator[tuple[int, T]]:
    """Items by their numbers; of damaged ones, a sentence goes to `left_out` instead."""
    for number in numbers:
        try:
            item = load(number)
        except DamagedImage as error:
            left_out[number] = sentence(error)
        else:
            yield number, item


def sample_items(
    model: Net2NetTransformer,
    items: Iterable[SampleInputs],
    request_of: Callable[[SampleInputs], Request],
    settings: SampleSettings,
    *,
    batch_size: int,
    seed: int,
    on_step: OnStep | None = None,
    compiled: bool = False,
    filled: bool = False,
) -> Iterator[Sample]:
    """A sample of each item, in their order: of those of one size a batch at once.

    Of each size that may take long it is said how long an image takes; `compiled` and `filled` are
    those of `sample_images`.
    """
    said: set[tuple[int, int]] = set()
    for shape, group in groupby(items, key=lambda inputs: inputs.shape):
        requests: Iterator[Request] = map(request_of, group)
        if shape not in said:
            requests = announced(model, requests, settings, batch_size, shape)
            said.add(shape)
        yield from sample_images(
            model,
            requests,
            settings,
            batch_size=batch_size,
            seed=seed,
            shape=shape,
            on_step=on_step,
            compiled=compiled,
            filled=filled,
        )
