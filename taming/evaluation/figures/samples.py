"""A few samples of a run for figures: the same seeds and conditions at several sizes, or orders."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taming.data.seeding import SeededDataset
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.reading_order import fixed_orders
from taming.sampling.engine import sample_images
from taming.sampling.estimate import announced
from taming.sampling.inputs import inputs_of_example, scaled
from taming.sampling.requests import Request, labels_for, request_for_inputs, requests_for_labels
from taming.sampling.settings import SampleSettings
from taming.sampling.sizes import pixels_per_token, tokens_for, trained_shape, trained_size

Shape = tuple[int, int]  # height and width in tokens


@dataclass(frozen=True)
class Drawing:
    """How the samples of a figure are drawn."""

    settings: SampleSettings
    seed: int = 0
    batch_size: int = 4

    def images(
        self,
        model: Net2NetTransformer,
        requests: Sequence[Request],
        shape: Shape | None = None,
        announce: bool = True,
    ) -> list[Tensor]:
        """[C, H, W] of each request; with `announce` it is said how long large sizes take."""
        batch_size, ordered = min(self.batch_size, len(requests)), iter(requests)
        if announce:
            count = len(requests)
            ordered = announced(model, requests, self.settings, batch_size, shape, count=count)
        samples = sample_images(
            model, ordered, self.settings, batch_size=batch_size, seed=self.seed, shape=shape
        )
        return [sample.image for sample in samples]


def first_requests(
    model: Net2NetTransformer, count: int, label: int | None = None, shape: Shape | None = None
) -> list[Request]:
    """Samples 0 to `count` - 1 of a class (the first one by default), or without a condition.

    Raises UserError for models whose conditions come from data.
    """
    labels = labels_for(model, None if label is None else [label])[:1]
    return list(requests_for_labels(model, labels, count, shape=shape))


@dataclass(frozen=True)
class SizedSample:
    """A sample at one size."""

    image: Tensor  # [C, H, W] in [-1, 1]
    tokens: int
    seconds: float

    @property
    def caption(self) -> str:
        """Its height x width in pixels, as --sizes takes them."""
        _, height, width = self.image.shape
        return f"{height} x {width}"


def default_sizes(model: Net2NetTransformer) -> list[tuple[int, int]]:
    """Once, twice and four times the training's height and width."""
    height, width = trained_size(model)
    return [(times * height, times * width) for times in (1, 2, 4)]


def samples_of_sizes(
    model: Net2NetTransformer,
    sizes: Sequence[tuple[int, int]],
    drawing: Drawing,
    label: int | None = None,
    item: tuple[SeededDataset, int] | None = None,
) -> list[SizedSample]:
    """One sample per size in pixels, with the same seed and condition, by the sliding window.

    Args:
        label: its class, for models of classes.
        item: the dataset and the number of the item whose condition it is, which is resized.

    Raises UserError for sizes that are no whole tokens, or conditions that the model does not take.
    """
    shapes = [tokens_for(model, size) or trained_shape(model) for size in sizes]
    requests = [_request(model, shape, label, item) for shape in shapes]
    samples = []
    for shape, request in zip(shapes, requests, strict=True):
        start = time.monotonic()
        (image,) = drawing.images(model, [request], shape)
        samples.append(SizedSample(image, shape[0] * shape[1], time.monotonic() - start))
    return samples


def _request(
    model: Net2NetTransformer,
    shape: Shape,
    label: int | None,
    item: tuple[SeededDataset, int] | None,
) -> Request:
    if item is None:
        return first_requests(model, 1, label, shape)[0]
    inputs = inputs_of_example(model, *item)
    scale = shape[0] / inputs.shape[0]
    inputs = scaled(model, inputs, scale)
    if inputs.shape != shape:
        factor = pixels_per_token(model)
        raise UserError(
            f"the condition of item {item[1]} has {inputs.shape[1] * factor} pixels a row where "
            f"the size has {shape[1] * factor}; give sizes of its shape"
        )
    return request_for_inputs(model, inputs)


@torch.no_grad()
def order_picture(model: Net2NetTransformer, seed: int = 0) -> np.ndarray | None:
    """uint8 (h, w, 3): when each token is predicted, from black (first) to white (last).

    Of a model of all orders it is the one of them that `seed` draws, of one that was annealed to
    rows the last one; None of a masked model, which has none.
    """
    if model.masked:
        return None
    height, width = trained_shape(model)
    places = torch.arange(height * width, device=model.device)[None]
    ranks = model.permuter(places, reverse=True)[0]  # by position: its place in the order
    if model.reading.any and not model.reading.ends_by_rows:
        ranks = fixed_orders(places, seed)[0].argsort()
    grays = (
        (255 * ranks.float() / max(1, len(ranks) - 1)).round().byte().cpu().view(height, width, 1)
    )
    return grays.expand(-1, -1, 3).numpy()
