"""Which images of a training set are nearest to samples: whether a model repeats what it saw.

By LPIPS, the distances to a few samples take one pass of all images through its network, as the
samples' own features are kept. With `candidates`, only so many images go through it for each
sample, those whose features by an extractor are nearest: much faster where these are cached, and
right as long as the nearest by LPIPS are among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.metrics.features import Extractor, FeatureRequest
from taming.evaluation.plots import images_at, spread
from taming.evaluation.runner import Runner
from taming.evaluation.sources.images import (
    ImageSource,
    SourceImage,
    State,
    indices_and_labels,
    pixel_digest,
)
from taming.modules.losses.lpips import LPIPS, SMALLEST_IMAGES
from taming.pictures import grid, resize_and_crop, to_values

Nearest = dict[int, list[tuple[int, float]]]
"""By a sample's index, the (index, distance) of images, the nearest first."""


def chosen_samples(samples: ImageSource, rows: int) -> list[SourceImage]:
    """`rows` samples, evenly spaced; the others are not made."""
    chosen = images_at(samples, spread(len(samples), rows))
    return sorted(chosen, key=lambda image: image.index)


def at_size(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) resized and cropped to `size`, with anti-aliasing."""
    if tuple(pixels.shape[1:]) == size:
        return pixels
    resized = resize_and_crop(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), size)
    return torch.from_numpy(resized.copy()).permute(2, 0, 1)


class LpipsDistances:
    """The LPIPS of every image to some samples: an `ImageAccumulator`.

    Images of other sizes than the samples' are resized and cropped to these.
    """

    def __init__(
        self, network: LPIPS, samples: Sequence[SourceImage], device: torch.device
    ) -> None:
        sizes = {tuple(sample.pixels.shape[1:]) for sample in samples}
        if len(sizes) > 1:
            raise UserError("the samples are of different sizes; LPIPS compares images of one")
        ((height, width),) = sizes
        smallest = SMALLEST_IMAGES[network.backbone]
        if min(height, width) < smallest:
            raise UserError(
                f"the samples have {width} x {height} pixels, and LPIPS by this network takes "
                f"{smallest} a side at least; use --by features"
            )
        self.network, self.device, self.size = network, device, (height, width)
        self.features = [self._features([sample]) for sample in samples]
        self.bank = FeatureBank()

    @torch.no_grad()
    def _features(self, images: Sequence[SourceImage]) -> list[Tensor]:
        pixels = torch.stack([at_size(image.pixels, self.size) for image in images])
        return self.network.features(to_values(pixels.to(self.device)))

    @torch.no_grad()
    def update(self, images: Sequence[SourceImage]) -> None:
        features = self._features(images)
        columns = [self.network.distance(features, of).flatten() for of in self.features]
        self.bank.update(indices_and_labels(images)[0], torch.stack(columns, dim=1))  # (B, rows)

    def state_dict(self) -> State:
        return self.bank.state_dict()

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.bank.merge_state(state)


@dataclass
class NeighborSearch:
    """Finds the nearest images of a reference, which may be large, to some samples."""

    reference: ImageSource
    samples: Sequence[SourceImage]
    count: int  # of images per sample
    runner: Runner = field(default_factory=Runner)
    device: torch.device = torch.device("cpu")
    images: dict[str, Any] = field(default_factory=dict)  # of the reference that was gone through

    def by_features(self, extractor: Extractor, count: int | None = None) -> Nearest:
        """The nearest by the Euclidean distance of the extractor's (one) layer."""
        (layer,) = extractor.layers
        request = FeatureRequest(FeatureBank, extractor, layer)
        counted = self.runner.features(self.reference, [request], "reference", keep=True)
        self.images, bank = counted.manifest.describe(), counted.parts[request]
        assert isinstance(bank, FeatureBank)
        sampled = [extractor(sample.pixels[None])[layer] for sample in self.samples]
        real = torch.from_numpy(bank.compute())
        distances = torch.cdist(torch.cat(sampled).double(), real.double())  # (rows, N)
        return self._nearest(distances, range(len(real)), count or self.count)

    def by_lpips(self, network: LPIPS, weights_hash: str) -> Nearest:
        """The nearest of all images, each of which goes through the network once."""
        key = self.runner.key_for(
            self.reference,
            lpips=weights_hash,
            samples=[pixel_digest(image.pixels.numpy()).hex() for image in self.samples],
        )
        manifest, counted = self.runner.run(
            self.reference,
            lambda: LpipsDistances(network, self.samples, self.device),
            key,
            "reference",
        )
        self.images = manifest.describe()
        distances = torch.from_numpy(counted.bank.compute()).T  # (rows, N)
        return self._nearest(distances, range(distances.shape[1]), self.count)

    def by_lpips_among(self, candidates: Nearest, network: LPIPS) -> Nearest:
        """The nearest of those that any sample has as candidates."""
        union = sorted({index for row in candidates.values() for index, _ in row})
        distances = LpipsDistances(network, self.samples, self.device)
        for image in images_at(self.reference, union):
            distances.update([image])
        rows = torch.from_numpy(distances.bank.compute()).T
        return self._nearest(rows, union, self.count)

    def _nearest(self, distances: Tensor, indices: Sequence[int], count: int) -> Nearest:
        """The smallest of `distances` (rows, N), whose columns are the images of `indices`."""
        values, places = distances.topk(min(count, len(indices)), largest=False)
        return {
            sample.index: [(indices[place], value) for place, value in zip(*row, strict=True)]
            for sample, row in zip(
                self.samples, zip(places.tolist(), values.tolist(), strict=True), strict=True
            )
        }


def neighbors_page(
    samples: Sequence[SourceImage], reference: ImageSource, nearest: Nearest, side: int = 128
) -> Image.Image:
    """A row per sample: the sample, then its nearest images under their distances."""
    wanted = sorted({index for row in nearest.values() for index, _ in row})
    real = {image.index: image.pixels for image in images_at(reference, wanted)}
    rows = []
    for sample in samples:
        cells = [(f"{distance:.3f}", _array(real[n])) for n, distance in nearest[sample.index]]
        rows.append([(Path(sample.name).name, _array(sample.pixels)), None, *cells])
    return grid(rows, {0: "sample", 2: "nearest images, with their distances"}, side=side)


def _array(pixels: Tensor) -> np.ndarray:
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
