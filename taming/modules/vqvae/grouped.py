"""Groups of channels, each with a quantizer of its own (product quantization).

As in product quantization (Jegou et al., 2011) and, for trained codebooks, wav2vec 2.0's groups
(arXiv 2006.11477, section 2) and MoVQ (arXiv 2209.09002).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taming.config import instantiate_from_config
from taming.config_values import Count, ModuleConfig
from taming.errors import UserError
from taming.modules.vqvae.codebook import (
    LevelTables,
    Quantized,
    SeveralLevels,
    index_count,
    indexed_codes,
    latent_channels,
    table_numbers,
)
from taming.modules.vqvae.residual import check_depth


class GroupedQuantizer(nn.Module):
    """Latents [B, groups * C, h, w] in `groups` parts of C channels, each quantized by itself.

    The quantizers are alike, but none shares its codes with another. With K codes each there are
    K^groups vectors that a position can have. Indices are [B, h, w, n], of a group after those of
    the one before it: n is the number of groups, or of groups and levels of residual quantizers.
    The loss is the mean of the groups' losses.

    Args:
        groups: how many there are.
        quantizer_config: `target` and `params` of each one's quantizer.
        e_dim: the channels of all groups together, if that is to be checked.

    Raises:
        UserError: if `e_dim` is not divided by the groups into the quantizers' width, or the
            quantizers have several grids of codes.
    """

    def __init__(
        self, groups: Count, quantizer_config: ModuleConfig, e_dim: Count | None = None
    ) -> None:
        super().__init__()
        made: list[Any] = [
            instantiate_from_config(quantizer_config, "quantizer_config", "module")
            for _ in range(groups)
        ]
        self._check(made[0], groups, e_dim)
        self.groups = nn.ModuleList(made)
        sizes = [self._sizes(one) for one in made]
        self.depth = len(sizes[0])
        self.n_e = sum(one.n_e for one in made)
        self.e_dim = groups * made[0].e_dim
        self.re_embed = max(size for of_group in sizes for size in of_group.values())
        self.input_channels: int = groups * latent_channels(made[0])

    def _check(self, one: Any, groups: int, e_dim: int | None) -> None:
        if e_dim not in (None, groups * one.e_dim):
            fits = e_dim is not None and e_dim % groups == 0
            advice = (
                f"their quantizers have {one.e_dim}; make these {e_dim // groups}"
                if fits and e_dim is not None
                else "that does not divide into equal parts; take another number of groups"
            )
            raise UserError(f"e_dim is {e_dim} channels for {groups} groups, and {advice}")
        if isinstance(one, SeveralLevels) and one.index_shape(2, 4)[:-1] != (2, 4):
            raise UserError(
                f"groups have one grid of codes, and {type(one).__name__} has several; take "
                "another quantizer, such as ResidualQuantizer"
            )

    @staticmethod
    def _sizes(one: Any) -> dict[str, int]:
        """The number of each level's indices, by the end of the level's name."""
        if isinstance(one, SeveralLevels):
            return {f"_{name}": size for name, size in one.level_sizes.items()}
        return {"": index_count(one)}

    @property
    def _quantizers(self) -> list[Any]:
        return list(self.groups)

    @property
    def level_sizes(self) -> dict[str, int]:
        return {
            f"{group}{name}": size
            for group, one in enumerate(self._quantizers)
            for name, size in self._sizes(one).items()
        }

    @property
    def table_numbers(self) -> tuple[int, ...]:
        first = self._quantizers[0]
        own = table_numbers(first) if isinstance(first, SeveralLevels) else (0,)
        tables = len(set(own))
        return tuple(g * tables + number for g in range(len(self.groups)) for number in own)

    @property
    def level_tables(self) -> tuple[Tensor, ...]:
        tables: list[Tensor] = []
        for one in self._quantizers:
            tables += one.level_tables if isinstance(one, LevelTables) else [indexed_codes(one)]
        return tuple(tables)

    @property
    def level_factors(self) -> tuple[int, ...]:
        return (1,) * (self.depth * len(self.groups))

    def combined(self, *grids: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for group, one in enumerate(self._quantizers):
            own = grids[group * self.depth : (group + 1) * self.depth]
            parts.append(one.combined(*own) if isinstance(one, LevelTables) else own[0])
        return torch.cat(parts, dim=1)

    def index_shape(self, height: int, width: int) -> tuple[int, ...]:
        return height, width, self.depth * len(self.groups)

    def split_levels(self, indices: Tensor) -> dict[str, Tensor]:
        check_depth(indices, self.depth * len(self.groups))
        return dict(zip(self.level_sizes, indices.unbind(dim=3), strict=True))

    def forward(self, z: Tensor) -> Quantized:
        """Latents [B, input_channels, h, w] -> `Quantized`."""
        codes, losses, indices = [], [], []
        for one, part in zip(self._quantizers, z.chunk(len(self.groups), dim=1), strict=True):
            z_q, loss, (_, _, chosen) = one(part)
            codes.append(z_q)
            losses.append(loss)
            indices.append(chosen.reshape(len(z), *z.shape[2:], self.depth))
        loss = torch.stack(losses).mean()
        return torch.cat(codes, dim=1), loss, (None, None, torch.cat(indices, dim=3))

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Indices [B, h, w, n] -> codes [B, e_dim, h, w].

        Raises:
            UserError: for indices of another shape.
        """
        check_depth(indices, self.depth * len(self.groups))
        parts: list[Tensor] = []
        for one, own in zip(self._quantizers, indices.split(self.depth, dim=3), strict=True):
            shown = own if isinstance(one, SeveralLevels) else own[..., 0]
            parts.append(one.get_codebook_entry(shown, (*shown.shape[:3], one.e_dim)))
        return torch.cat(parts, dim=1)
