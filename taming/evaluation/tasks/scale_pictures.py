"""Images after each scale of a pyramid of codes, beside their originals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taming.devices import computing_in
from taming.errors import UserError
from taming.evaluation.tasks.first_stage import shown
from taming.models.codes import size_of_codes
from taming.models.first_stage import FirstStage
from taming.models.multi_scale import MultiScaleVQ
from taming.pictures import Cell
from taming.user_code import name_of

Row = list[Cell | tuple[str, Cell]]


def require_scales(model: FirstStage) -> MultiScaleVQ:
    """The model; raises `UserError` if it has not several scales."""
    if not isinstance(model, MultiScaleVQ):
        raise UserError(
            f"--after_scales is for a first stage of several scales, and {name_of(type(model))} "
            "has one grid of codes; leave it out, or give a run of MultiScaleVQ"
        )
    return model


@torch.no_grad()
def rows_of_scales(
    model: MultiScaleVQ, images: Sequence[tuple[str, Tensor]]
) -> tuple[list[Row], list[str]]:
    """Rows of a picture, of named images [1, C, H, W], and the labels of its columns."""
    rows: list[Row] = []
    device = next(model.parameters()).device
    for name, image in images:
        x = image.to(device)
        with computing_in(torch.float32, device):
            made = model.decode_scales(model.encode_to_indices(x), size_of_codes(model, x))
        rows.append([(name, shown(model, x)), *(("", shown(model, one)) for one in made)])
    return rows, ["original", *model.quantize.level_sizes]
