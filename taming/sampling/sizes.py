"""Image sizes in pixels and in tokens."""

from __future__ import annotations

from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer

Sides = tuple[int | None, int | None]
"""(height, width) in pixels; a side that is None is the training's."""


def pixels_per_token(model: Net2NetTransformer) -> int:
    """Side, in pixels, of the square that a code of the model stands for."""
    return model.first_stage_model.downsampling_factor


def trained_shape(model: Net2NetTransformer) -> tuple[int, int]:
    """(height, width) in tokens of the images that the model was trained on."""
    _, height, width = model.latent_shape()
    return height, width


def tokens_for(model: Net2NetTransformer, size: Sides | None) -> tuple[int, int] | None:
    """(height, width) in tokens of an image of `size` in pixels; None if that is None.

    Raises:
        UserError: if a side is no multiple of the model's `pixels_per_token`.
    """
    if size is None:
        return None
    height, width = (
        trained if pixels is None else _tokens_along(name, pixels, pixels_per_token(model))
        for name, pixels, trained in zip(
            ("height", "width"), size, trained_shape(model), strict=True
        )
    )
    return height, width


def _tokens_along(name: str, pixels: int, factor: int) -> int:
    if pixels < factor or pixels % factor:
        raise UserError(
            f"the {name} must be a multiple of {factor} pixels for this model, not {pixels}"
        )
    return pixels // factor
