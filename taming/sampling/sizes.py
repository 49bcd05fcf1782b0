"""Image sizes in pixels and in tokens."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from taming.command_line import Arguments
from taming.errors import UserError
from taming.limits import check_picture
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.transformer_checks import trained_shape

__all__ = [
    "Sides",
    "add_side_flags",
    "pixels_per_token",
    "tokens_for",
    "trained_shape",
    "trained_size",
    "whole_codes",
    "whole_tokens",
]

Sides = tuple[int | None, int | None]
"""(height, width) in pixels; a side that is None is the training's."""


def pixels_per_token(model: Net2NetTransformer) -> int:
    """Side, in pixels, of the square that a code of the model stands for."""
    return model.first_stage_model.downsampling_factor


def trained_size(model: Net2NetTransformer) -> tuple[int, int]:
    """(height, width) in pixels of the images that the model was trained on."""
    factor, (rows, columns) = pixels_per_token(model), trained_shape(model)
    return rows * factor, columns * factor


def tokens_for(model: Net2NetTransformer, size: Sides | None) -> tuple[int, int] | None:
    """(height, width) in tokens of a `size`, sides of which must be whole tokens; None of None."""
    return None if size is None else whole_tokens(model, size)


def whole_tokens(model: Net2NetTransformer, size: Sides) -> tuple[int, int]:
    """(height, width) in tokens of a `size`; see `whole_codes`."""
    return whole_codes(size, pixels_per_token(model), trained_shape(model))


def whole_codes(size: Sides, factor: int, trained: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in codes, which stand for `factor` pixels a side, of a `size` in pixels.

    Raises:
        UserError: for a side of no whole codes, and an image that is too large to be made.
    """
    shape = list(trained)
    for place, (name, pixels) in enumerate(zip(("height", "width"), size, strict=True)):
        if pixels is not None and (pixels < factor or pixels % factor):
            raise UserError(
                f"the {name} must be a multiple of {factor} pixels for this model, not {pixels}"
            )
        shape[place] = shape[place] if pixels is None else pixels // factor
    check_picture(shape[0] * factor, shape[1] * factor)
    return shape[0], shape[1]


class _SetSide(argparse.Action):
    """Store one side of a size; `const` says which, 0 for the height and 1 for the width."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        sides = list(vars(namespace)[self.dest] or (None, None))
        sides[self.const] = values
        vars(namespace)[self.dest] = tuple(sides)


def add_side_flags(parser: Arguments) -> None:
    """The hidden flags --height and --width, earlier spellings of --size; each sets one side."""
    for place, name in enumerate(("--height", "--width")):
        parser.add_argument(
            name,
            dest="size",
            type=int,
            action=_SetSide,
            const=place,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
