"""Image sizes in pixels and in tokens, and conditions that are known for any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from taming.data.faceshq import coordinates
from taming.errors import UserError
from taming.modules.misc.coord import CoordStage


def pixels_per_token(model: Any) -> int:
    """Side, in pixels, of the square that a code of a `Net2NetTransformer` stands for."""
    return model.first_stage_model.downsampling_factor


def tokens_for(
    model: Any, height: int | None = None, width: int | None = None
) -> tuple[int, int] | None:
    """Height and width in tokens of an image of height x width pixels; None if both are None.

    A side that is None is the training's.

    Raises:
        UserError: for a side that is no multiple of the model's factor.
    """
    if height is None and width is None:
        return None
    factor = pixels_per_token(model)
    _, *sides = model.latent_shape()
    for n, (name, pixels) in enumerate((("height", height), ("width", width))):
        if pixels is None:
            continue
        if pixels < factor or pixels % factor:
            raise UserError(
                f"the {name} must be a multiple of {factor} pixels for this model, not {pixels}"
            )
        sides[n] = pixels // factor
    return sides[0], sides[1]


def condition_indices(model: Any, c: Tensor) -> Tensor:
    """Indices of conditions as the model reads them: [B, n], maps [B, h, w] where they have rows.

    `c` is what `model.get_input` gives.
    """
    quant, indices = model.encode_to_c(c.to(model.transformer.pos_emb.device))
    return indices.unflatten(1, tuple(quant.shape[2:])) if quant.dim() == 4 else indices


def coordinate_map(model: Any, shape: tuple[int, int]) -> Tensor | None:
    """The condition int64 (h, w) of a model of pixel coordinates for images of (h, w) tokens.

    Coordinates rise from 0 to 1, row by row, over the whole image. None for any other model.
    """
    if not isinstance(model.cond_stage_model, CoordStage):
        return None
    height, width = (side * pixels_per_token(model) for side in shape)
    pixels = torch.from_numpy(coordinates(height, width)).view(1, 1, height, width)
    return condition_indices(model, pixels)[0].cpu()


def parse_resolution(text: str) -> tuple[int, int]:
    """Height and width of "height,width", in pixels; UserError for anything else."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--resolution takes height,width in pixels, not '{text}'")
    return int(parts[0]), int(parts[1])
