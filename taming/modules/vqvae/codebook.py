"""What a quantizer is, and what all of them share: nearest code, look-up, remapping, counting.

A new one is a class in a file of its own, here or elsewhere, and one line of YAML, a first stage's
`quantizer_config: {target: ..., params: ...}`: an `nn.Module` with what the protocol `Quantizer`
lists, of which `Codebook` has all but `forward` and `codes`. Sources: VQ-VAE (arXiv 1711.00937) and
VQGAN (arXiv 2012.09841, section 3.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.config_values import Count, CountOrZero, FilePath
from taming.devices import without_autocast
from taming.errors import UserError, absence
from taming.limits import check_sizes
from taming.modules.vqvae.products import full_fp32_matmul

Quantized = tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None, Tensor]]
"""(z_q [B, e_dim, h, w], loss, (perplexity, one-hot codes, indices)), computed in fp32 or better.

`z_q` has the dtype of the codebook, which is fp32 under autocast too.

`indices` has one entry for each of the B * h * w positions, in any shape; of `SeveralLevels` they
are [B, *index_shape].
"""


class CodeTable(Protocol):
    """What looks codes up; the half of a quantizer that decoding needs."""

    @property
    def n_e(self) -> int:
        """Number of codes."""

    @property
    def e_dim(self) -> int:
        """Width of a code: the channels that the decoder's side sees."""

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Codes of `indices` [...] as [..., e_dim]; with `shape` (b, h, w, c) as [b, c, h, w]."""


class Quantizer(CodeTable, Protocol):
    """Latents -> the nearest (or sampled) codebook vectors and their indices.

    A quantizer whose latents have more or fewer channels than its codes also has an attribute
    `input_channels`.
    """

    def __call__(self, z: Tensor, /) -> Quantized:
        """Latents [B, input_channels, h, w] -> `Quantized`."""


@runtime_checkable
class SeveralLevels(Protocol):
    """What a quantizer with several indices a position, or several grids of them, has beside.

    `n_e` counts the codes of all levels or, if they share one table, of that. `get_codebook_entry`
    takes indices [B, *index_shape] alone, and gives codes [B, e_dim, h, w] to decode an image from.
    """

    @property
    def level_sizes(self) -> Mapping[str, int]:
        """How many indices each level has, by its name, the coarsest first: one for each of its
        codes, or fewer if they are remapped."""

    def index_shape(self, height: int, width: int, /) -> tuple[int, ...]:
        """The shape of an image's indices, whose codes are [e_dim, height, width]."""

    def split_levels(self, indices: Tensor, /) -> dict[str, Tensor]:
        """Indices [B, *index_shape] by level, each counted from 0, of any shape.

        Raises:
            UserError: for indices of another shape.
        """


@runtime_checkable
class SharedTables(SeveralLevels, Protocol):
    """Levels of which some may have one table of codes in common.

    Without it, all of them have, if `n_e` is less than their sizes together, or else none.
    """

    @property
    def table_numbers(self) -> tuple[int, ...]:
        """For each level the number of its table, from 0 on."""


@runtime_checkable
class LevelTables(SeveralLevels, Protocol):
    """Levels that are a grid with a table of codes each, which guidance optimizes."""

    @property
    def level_tables(self) -> tuple[Tensor, ...]:
        """The codes that the indices of each level stand for, [K, c]."""

    @property
    def level_factors(self) -> tuple[int, ...]:
        """The sides of each level's grid, as multiples of the first's."""

    def combined(self, *grids: Tensor) -> Tensor:
        """Codes of each level [B, c, h, w] -> what an image is decoded from, [B, e_dim, h, w]."""


def index_shape(quantizer: object, height: int, width: int) -> tuple[int, ...]:
    """The shape of an image's indices, whose codes are [e_dim, height, width]."""
    if isinstance(quantizer, SeveralLevels):
        return quantizer.index_shape(height, width)
    return height, width


def latent_channels(quantizer: Quantizer) -> int:
    """Channels of the latents that it takes."""
    return int(getattr(quantizer, "input_channels", quantizer.e_dim))


def index_count(quantizer: CodeTable) -> int:
    """How many different indices there are: one for each code, or fewer if they are remapped."""
    count: int = getattr(quantizer, "re_embed", quantizer.n_e)
    return count


def indexed_codes(quantizer: CodeTable) -> Tensor:
    """What the indices of a quantizer of one level stand for, [K, c]; without `remap` its table."""
    if isinstance(quantizer, Codebook) and quantizer.remap is None:
        return quantizer.codes
    parts = quantizer if isinstance(quantizer, nn.Module) else nn.Module()
    tensors = itertools.chain(parts.parameters(), parts.buffers())
    device = next((tensor.device for tensor in tensors), None)
    return quantizer.get_codebook_entry(torch.arange(index_count(quantizer), device=device))


def table_numbers(quantizer: Any) -> tuple[int, ...]:
    """For each level of `SeveralLevels` the number of its table, from 0 on."""
    if isinstance(quantizer, SharedTables):
        return quantizer.table_numbers
    sizes = quantizer.level_sizes.values()
    shared = sum(sizes) > quantizer.n_e
    return tuple(0 if shared else level for level in range(len(sizes)))


# Distances held at a time: 256 MiB in fp32, whatever the number of latents and codes. A batch of 64
# images of 16 x 16 codes has 16,384 latents; all distances to 16,384 codes at once would be 1 GiB.
MAX_DISTANCES = 2**26


@torch.no_grad()
def nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    """Indices [N] of the codes [K, D] nearest to the latents [N, D] in L2, in fp32 or better."""
    if torch.compiler.is_exporting():  # graphs of other programs have no such operation
        return _nearest(latents.to(codebook), codebook)
    indices: Tensor = _nearest_code(latents, codebook)
    return indices


def _nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """|z - c|^2 = |z|^2 - 2 z.c + |c|^2, where |z|^2 is the same for all codes c and left out. So
    the search is one matrix product, with the codes' squared lengths added in the same kernel."""
    lengths = codebook.square().sum(dim=1)  # (K,)
    # (K,) - 2 (rows, D) @ (D, K) -> (rows, K) -> (rows,)
    return torch.addmm(lengths, latents, codebook.t(), alpha=-2).argmin(dim=1)


# An operation of its own, as switching the precision of products is none that a graph could hold.
@torch.library.custom_op(
    "taming::nearest_code", mutates_args=(), schema="(Tensor latents, Tensor codebook) -> Tensor"
)
def _nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    """The search of `nearest_code`, in parts of bounded size."""
    codebook, latents = precise(codebook), precise(latents).to(precise(codebook))
    rows = max(1, MAX_DISTANCES // len(codebook))
    with without_autocast(latents.device), full_fp32_matmul():
        parts = [_nearest(part, codebook) for part in torch.split(latents, rows)]
    return torch.cat(parts)


@_nearest_code.register_fake
def _(latents: Tensor, codebook: Tensor) -> Tensor:
    return latents.new_empty(len(latents), dtype=torch.long)


def count_codes(indices: Tensor, n_codes: int) -> Tensor:
    """How often each of `n_codes` codes occurs in `indices`, as floats [n_codes]."""
    flat = indices.reshape(-1)
    ones = torch.ones_like(flat, dtype=torch.float)
    # Unlike `bincount`, this does not wait for the device: the result's length is known beforehand.
    return ones.new_zeros(n_codes).scatter_add_(0, flat, ones)


def perplexity(indices: Tensor, n_codes: int) -> Tensor:
    """exp(entropy) of the codes' frequencies: n_codes if all are used equally, 1 if one is."""
    frequencies = count_codes(indices, n_codes) / indices.numel()
    return torch.exp(-(frequencies * (frequencies + 1e-10).log()).sum())


def precise(x: Tensor) -> Tensor:
    """`x` in fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def channels_last(z: Tensor) -> Tensor:
    """Latents [B, C, h, w] as rows [B * h * w, C], in fp32 at least."""
    return precise(z).permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def channels_first(rows: Tensor, like: Tensor) -> Tensor:
    """Rows [B * h * w, C] in the shape [B, C, h, w] of `like`."""
    batch, _, height, width = like.shape
    return rows.reshape(batch, height, width, -1).permute(0, 3, 1, 2).contiguous()


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """The value of `z_q` with the gradient of `z` (arXiv 1711.00937, section 3.2)."""
    # Taking the nearest code has no derivative: the encoder gets the decoder's gradient unchanged.
    return z + (z_q - z).detach()


UnknownIndex = Literal["random", "extra"] | CountOrZero


class Codebook(nn.Module):
    """Base of the quantizers: `n_e` codes of width `e_dim`, and the remapping of their indices.

    `remap` is an `.npy` file that lists the codes a trained first stage uses; indices then count
    within that list, so that the transformer's vocabulary is smaller: there are `re_embed` of them.
    A code outside becomes a "random" index, an "extra" one after the last, or the integer
    `unknown_index`, which is one of the list's:

        used                                   [3, 7, 8]    of n_e = 10 codes
        codes in an image                      [7, 3, 5]
        their indices, "extra"                 [1, 0, 3]    re_embed = 4: 0, 1, 2 and the extra one
        codes that these indices stand for     [7, 3, 3]    unknown ones become the first used one
    """

    used: Tensor

    def __init__(
        self,
        n_e: Count,
        e_dim: Count,
        remap: FilePath | None = None,
        unknown_index: UnknownIndex = "random",
    ) -> None:
        super().__init__()
        check_sizes(n_embed=n_e, embed_dim=e_dim)  # of subclasses without ranges in their hints
        self.n_e, self.e_dim, self.remap = n_e, e_dim, remap
        self.unknown_index = unknown_index
        self.re_embed = n_e
        if remap is not None:
            self._read_remap(Path(remap), unknown_index)

    def _read_remap(self, path: Path, unknown_index: UnknownIndex) -> None:
        if not path.is_file():
            raise UserError(f"remap: {absence('file', path)}; give an .npy of used code indices")
        if unknown_index not in ("random", "extra") and not isinstance(unknown_index, int):
            raise UserError(
                f'unknown_index: {unknown_index} is none of "random", "extra" and an integer'
            )
        try:
            used = np.asarray(np.load(path)).astype(np.int64, casting="same_kind")
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise UserError(f"remap: {path} is no .npy of used code indices ({error})") from None
        if used.ndim != 1 or not len(used) or used.min() < 0 or used.max() >= self.n_e:
            raise UserError(f"remap: {path} must list indices from 0 to {self.n_e - 1}")
        if isinstance(unknown_index, int) and not 0 <= unknown_index < len(used):
            raise UserError(
                f"unknown_index is {unknown_index}, which is no index of the {len(used)} codes in "
                f"{path}: make it one from 0 to {len(used) - 1}, or extra, which is one more"
            )
        self.register_buffer("used", torch.from_numpy(used))
        self.re_embed = len(self.used)
        if unknown_index == "extra":
            self.unknown_index = self.re_embed
            self.re_embed += 1

    @property
    def codes(self) -> Tensor:
        """The codebook [n_e, e_dim]."""
        raise NotImplementedError

    @property
    def input_channels(self) -> int:
        return self.e_dim

    def forward(self, z: Tensor) -> Quantized:
        raise NotImplementedError

    def _shaped(self, indices: Tensor, z: Tensor, as_grid: bool) -> Tensor:
        """Indices [N] as a quantizer returns them: [N, 1] if remapped, [B, h, w] if `as_grid`."""
        if self.remap is not None:
            indices = self.remap_to_used(indices)[:, None]
        return indices.reshape(z.shape[0], *z.shape[2:]) if as_grid else indices

    def remap_to_used(self, indices: Tensor) -> Tensor:
        """Indices into the codebook -> indices into the list of used codes, of any shape."""
        table = indices.new_full((self.n_e,), -1)  # by code, its place in `used`, or -1
        table[self.used] = torch.arange(len(self.used), device=indices.device)
        places = table[indices]
        if self.unknown_index == "random":
            substitute = torch.randint_like(places, len(self.used))
        else:
            substitute = torch.full_like(places, int(self.unknown_index))
        return torch.where(places < 0, substitute, places)

    def unmap_to_all(self, indices: Tensor) -> Tensor:
        """The inverse of `remap_to_used`; unknown codes become the first used one."""
        known = (indices >= 0) & (indices < len(self.used))
        return self.used[torch.where(known, indices, 0)]

    def look_up(self, indices: Tensor) -> Tensor:
        """The codes [..., e_dim] of indices [...] into the whole codebook."""
        return F.embedding(indices, self.codes)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        if self.remap is not None:
            indices = self.unmap_to_all(indices)
        codes = self.look_up(indices)  # (..., e_dim)
        if shape is None:
            return codes
        return codes.reshape(tuple(shape)).permute(0, 3, 1, 2).contiguous()
