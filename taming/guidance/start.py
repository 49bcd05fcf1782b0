"""What an image starts from: random codes, an image's or a sample's; and what may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taming.errors import UserError
from taming.guidance.code_grids import CodeGrids, Shape
from taming.guidance.cutouts import Chance
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling.engine import raster_indices, sample_images
from taming.sampling.requests import labels_for, request_for_condition
from taming.sampling.settings import SampleSettings
from taming.sampling.sizes import trained_shape


@dataclass(frozen=True, eq=False)
class Start:
    """The codes that an image starts from.

    Args:
        indices: of each grid (see `CodeGrids`) an index for each position, int64 [h * w].
        shape: (height, width) of the first grid.
        free: which positions of that may change, bool (h, w); None: all.
    """

    indices: Sequence[Tensor]
    shape: Shape
    free: Tensor | None = None


def chance_for(seed: int, number: int, device: torch.device) -> Chance:
    """The random numbers of the image `number`, the same for the same seed on every device of a
    kind."""
    words = np.random.SeedSequence([seed % 2**64, number]).generate_state(2, np.uint64)
    cpu, own = torch.Generator(), torch.Generator(device)
    for generator, word in zip((cpu, own), words, strict=True):
        generator.manual_seed(int(word) % 2**63)
    return Chance(cpu, own)


def trained_grid(grids: CodeGrids) -> Shape:
    """(height, width) of the first grid of an image of the training size."""
    _, height, width = grids.stage.latent_shape()
    return height, width


def random_start(grids: CodeGrids, shape: Shape, chance: Chance) -> Start:
    """Any codes, all as likely."""
    indices = [
        torch.randint(len(table), (h * w,), generator=chance.cpu).to(table.device)
        for table, (h, w) in zip(grids.tables, grids.shapes(shape), strict=True)
    ]
    return Start(indices, shape)


def image_start(grids: CodeGrids, image: Tensor, free: Tensor | None = None) -> Start:
    """The codes of an image [1, C, H, W] in [-1, 1], of whole codes.

    Raises:
        UserError: if `free` has another shape than the codes.
    """
    factor = grids.stage.downsampling_factor
    shape = (image.shape[2] // factor, image.shape[3] // factor)
    if free is not None and tuple(free.shape) != shape:
        raise UserError(
            f"the mask is of {free.shape[1]} x {free.shape[0]} codes, and the image of "
            f"{shape[1]} x {shape[0]}; give one of the image's size"
        )
    return Start(grids.encode(image), shape, free)


def prior_start(
    model: Net2NetTransformer,
    seed: int,
    number: int,
    *,
    label: int | None = None,
    shape: Shape | None = None,
    settings: SampleSettings | None = None,
) -> Start:
    """Codes that a transformer samples for the image `number`, of a class if it has classes.

    Raises:
        UserError: if it needs another condition, or a class that is missing or out of range.
    """
    shape = shape or trained_shape(model)
    [wanted, *others] = labels_for(model, None if label is None else [label])
    if others:
        raise UserError(
            f"this transformer samples images of a class; give --condition N, 0 to {len(others)}"
        )
    c = None if wanted is None else torch.tensor([wanted])
    request = request_for_condition(model, c, number, shape)
    [sample] = sample_images(model, [request], settings, batch_size=1, seed=seed, shape=shape)
    return Start([raster_indices(model, sample)], shape)
