"""The codes of any first stage as grids, each with the table that its codes are from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.errors import UserError
from taming.models.codes import CodesInterface
from taming.models.first_stage import FirstStage, index_count
from taming.modules.vqvae.codebook import LevelTables, SeveralLevels
from taming.user_code import name_of

Shape = tuple[int, int]
Rows = list[Tensor]
"""Of every grid a row per position, in raster order: [h * w, ...]."""


@dataclass(frozen=True, eq=False)
class CodeGrids:
    """A first stage, and the tables [K, c] of its grids of codes.

    There is one grid of h x w codes, or one for each level (`LevelTables`): `TwoLevelVQ` has a
    finer one of f h x f w as well.
    """

    stage: FirstStage
    tables: tuple[Tensor, ...]
    factors: tuple[int, ...]  # of each grid's sides, as multiples of the first's

    @classmethod
    @torch.no_grad()
    def of(cls, stage: FirstStage) -> CodeGrids:
        """The grids of a stage of images; the tables are copies, in float32 at least.

        Raises:
            UserError: for a first stage of segmentations or of other channels than images have, and
                one without a grid for each level.
        """
        if stage.reads_labels or stage.channels not in (1, 3):
            kind = "labels" if stage.reads_labels else f"{stage.channels} channels"
            raise UserError(
                f"this first stage is one of {kind}, and a guide looks at images, gray or in "
                "colors; give a run whose first stage is of these"
            )
        quantizer = stage.quantize
        if isinstance(quantizer, LevelTables):
            tables = tuple(table.detach().float() for table in quantizer.level_tables)
            return cls(stage, tables, quantizer.level_factors)
        if isinstance(quantizer, SeveralLevels):
            raise UserError(
                f"{name_of(type(quantizer))} has no grid of codes for each level, which a guide "
                "needs; give a run of another first stage, such as a VQModel with its own codebook"
            )
        indices = torch.arange(index_count(stage), device=device_of(stage))
        return cls(stage, (quantizer.get_codebook_entry(indices).detach().float(),), (1,))

    @property
    def device(self) -> torch.device:
        return self.tables[0].device

    def shapes(self, shape: Shape) -> list[Shape]:
        """(height, width) of every grid, whose first has `shape`."""
        return [(factor * shape[0], factor * shape[1]) for factor in self.factors]

    def size_of(self, shape: Shape) -> tuple[int, int]:
        """(height, width) in pixels of an image of that many codes."""
        factor = self.stage.downsampling_factor
        return shape[0] * factor, shape[1] * factor

    def decode(self, codes: Sequence[Tensor], shape: Shape) -> Tensor:
        """Rows of codes [h * w, c] of every grid -> an image [1, C, H, W], about [-1, 1]."""
        grids = [
            rows.reshape(1, *sides, -1).permute(0, 3, 1, 2).contiguous()  # (1, c, h, w)
            for rows, sides in zip(codes, self.shapes(shape), strict=True)
        ]
        quantizer, [whole, *others] = self.stage.quantize, grids
        if isinstance(quantizer, LevelTables):
            whole = quantizer.combined(whole, *others)
        if isinstance(self.stage, CodesInterface):  # latent diffusion's would quantize once more
            return self.stage.images_of(whole)
        return self.stage.decode(whole)

    @torch.no_grad()
    def encode(self, image: Tensor) -> list[Tensor]:
        """An image [1, C, H, W] in [-1, 1] -> the index of each position, int64 [h * w]."""
        indices = self.stage.encode_to_indices(image.to(self.device))
        if isinstance(self.stage.quantize, SeveralLevels):
            return [grid.flatten() for grid in self.stage.quantize.split_levels(indices).values()]
        return [indices.flatten()]

    def refined(self, marks: Tensor) -> list[Tensor]:
        """Marks of the first grid's positions, bool (h, w), for all grids, [h * w] each."""
        return [
            marks.repeat_interleave(factor, 0).repeat_interleave(factor, 1).flatten()
            for factor in self.factors
        ]

    def look_up(self, indices: Sequence[Tensor]) -> Rows:
        """Codes [h * w, c] of indices [h * w]."""
        return [F.embedding(i, table) for i, table in zip(indices, self.tables, strict=True)]


def device_of(stage: FirstStage) -> torch.device:
    """Where the weights of a stage are; the CPU, if it has none."""
    tensor = next(iter(stage.state_dict().values()), None)
    return torch.device("cpu") if tensor is None else tensor.device
