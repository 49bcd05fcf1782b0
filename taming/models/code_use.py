"""How much indices use the codes of a quantizer, and of each of its levels."""

from __future__ import annotations

import torch
from torch import Tensor

from taming.models.codes import Size, codebook_use, level_sizes, split_levels
from taming.modules.vqvae.codebook import CodeTable, SeveralLevels, index_count, table_numbers


def counted_codes(quantizer: CodeTable) -> int:
    """How many codes are counted apart, as indices tell them apart: those of each level, also where
    levels share a table."""
    return sum(level_sizes(quantizer).values()) or index_count(quantizer)


def counts_of_tables(quantizer: CodeTable, counts: Tensor) -> Tensor:
    """Counts of `counted_indices`, [counted_codes], by code of all tables one after the other:
    those of levels that share a table are added."""
    if not isinstance(quantizer, SeveralLevels):
        return counts
    parts, tables = counts.split(list(quantizer.level_sizes.values())), dict[int, Tensor]()
    for number, part in zip(table_numbers(quantizer), parts, strict=True):
        tables[number] = tables[number] + part if number in tables else part
    return torch.cat(list(tables.values()))


def code_count(quantizer: CodeTable) -> int:
    """How many codes the tables have, as far as there are indices for them."""
    return len(counts_of_tables(quantizer, torch.zeros(counted_codes(quantizer))))


def counted_indices(quantizer: CodeTable, indices: Tensor, size: Size | None = None) -> Tensor:
    """Indices [B, ...] as those of one table, in which the levels' codes follow one another.

    The result is [B, n], n the number of an image's indices; `size` is as in `split_levels`.
    """
    if not isinstance(quantizer, SeveralLevels):
        return indices
    flat, first = [], 0
    for name, level in split_levels(quantizer, indices, size).items():
        flat.append(level.flatten(1) + first)
        first += quantizer.level_sizes[name]
    return torch.cat(flat, dim=1)


def codebook_uses(quantizer: CodeTable, counts: Tensor) -> dict[str, float]:
    """`codebook_usage` and `codebook_perplexity` by counts of `counted_indices`, [counted_codes];
    of several levels also those of each, such as `codebook_usage_top`."""
    sizes, parts = level_sizes(quantizer), {"": counts_of_tables(quantizer, counts)}
    if sizes:
        of_levels = counts.split(list(sizes.values()))
        parts |= {f"_{name}": part for name, part in zip(sizes, of_levels, strict=True)}
    uses: dict[str, float] = {}
    for level, of_level in parts.items():
        used, perplexity = codebook_use(of_level)
        uses |= {f"codebook_usage{level}": used, f"codebook_perplexity{level}": perplexity}
    return uses


def names_of_uses(quantizer: CodeTable) -> set[str]:
    """The names of what `codebook_uses` gives."""
    levels = ("", *(f"_{name}" for name in level_sizes(quantizer)))
    return {f"codebook_{of}{level}" for of in ("usage", "perplexity") for level in levels}
