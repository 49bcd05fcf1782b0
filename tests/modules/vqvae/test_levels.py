"""Residual and grouped quantizers, whose positions have several indices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import GroupedResidualVQ, ResidualVQ

from taming.errors import UserError
from taming.models.code_use import code_count, codebook_uses, counted_codes, counted_indices
from taming.modules.vqvae.codebook import LevelTables, SeveralLevels
from taming.modules.vqvae.grouped import GroupedQuantizer
from taming.modules.vqvae.multi_scale import MultiScaleQuantizer
from taming.modules.vqvae.nearest import VectorQuantizer2
from taming.modules.vqvae.residual import ResidualQuantizer
from tests.support import GOLDEN

VQ = "taming.modules.vqvae."
COSINE = {"target": VQ + "cosine.CosineQuantizer", "params": {"n_e": 6, "e_dim": 2}}
RESIDUAL = {
    "target": VQ + "residual.ResidualQuantizer",
    "params": {"n_codes": 6, "e_dim": 2, "levels": 3},
}
MADE: dict[str, Any] = {
    "residual": lambda: ResidualQuantizer(6, 4, 3),
    "shared": lambda: ResidualQuantizer(6, 4, 3, shared=True),
    "grouped": lambda: GroupedQuantizer(2, COSINE),
    "grouped residual": lambda: GroupedQuantizer(2, RESIDUAL, e_dim=4),
}
# The library's residual quantizers, as ours are: learned by gradients, without its own additions.
LIBRARY: dict[str, Any] = {
    "dim": 4,
    "num_quantizers": 3,
    "codebook_size": 6,
    "learnable_codebook": True,
    "ema_update": False,
    "rotation_trick": False,
    "commitment_weight": 1.0,
}
DEPTH = {"residual": 3, "shared": 3, "grouped": 2, "grouped residual": 6}


@pytest.fixture(scope="module")
def z() -> Tensor:
    return torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))


def build(name: str) -> Any:
    torch.manual_seed(1)
    quantizer = MADE[name]()
    for parameter in quantizer.parameters():
        torch.nn.init.normal_(parameter)
    return quantizer


@pytest.mark.parametrize("name", MADE)
def test_there_and_back(name: str, z: Tensor) -> None:
    quantizer, depth = build(name), DEPTH[name]
    assert isinstance(quantizer, SeveralLevels) and isinstance(quantizer, LevelTables)
    z_q, loss, (_, _, indices) = quantizer(z)
    assert z_q.shape == z.shape and loss.shape == () and loss > 0
    assert indices.shape == (2, *quantizer.index_shape(5, 3)) == (2, 5, 3, depth)
    assert indices.min() >= 0 and indices.max() < 6 == quantizer.re_embed
    torch.testing.assert_close(quantizer.get_codebook_entry(indices), z_q)
    levels = quantizer.split_levels(indices)
    assert list(levels) == list(quantizer.level_sizes) and len(levels) == depth
    grids = [
        table[level].permute(0, 3, 1, 2)
        for table, level in zip(quantizer.level_tables, levels.values(), strict=True)
    ]
    torch.testing.assert_close(quantizer.combined(*grids), z_q)
    assert quantizer.level_factors == (1,) * depth
    assert quantizer.n_e == (6 if name == "shared" else 6 * depth)
    with pytest.raises(UserError, match=rf"are \[B, h, w, {depth}\]; these are \[2, 5, 3\]"):
        quantizer.get_codebook_entry(indices[..., 0])


REMAPPED: dict[str, dict[str, Any]] = {
    "residual": {},
    "shared": {"shared": True, "revive_after": 2},
}


@pytest.mark.parametrize("name", [*REMAPPED, "grouped residual"])
def test_indices_of_levels_are_within_a_remap(name: str, z: Tensor, tmp_path: Path) -> None:
    """Whose codes are those that the same quantizer takes without; unknown ones are the first."""
    np.save(tmp_path / "used.npy", np.array([4, 1, 2, 0]))
    options = {"remap": str(tmp_path / "used.npy"), "unknown_index": "extra"}
    params = {**RESIDUAL["params"], **options}
    if name in REMAPPED:
        plain = ResidualQuantizer(6, 4, 3, **REMAPPED[name])
        quantizer: Any = ResidualQuantizer(6, 4, 3, **REMAPPED[name], **options)
    else:
        plain, quantizer = build(name), GroupedQuantizer(2, {**RESIDUAL, "params": params})
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter)
    quantizer.load_state_dict(plain.state_dict(), strict=False)
    expected, loss, (_, _, whole) = plain(z)
    z_q, same_loss, (_, _, indices) = quantizer(z)
    torch.testing.assert_close((z_q, same_loss), (expected, loss))
    place = torch.tensor([3, 1, 2, 4, 0, 4])  # of each code in the list, or the extra one
    assert torch.equal(indices, place[whole]) and (indices == 4).any()
    assert set(quantizer.level_sizes.values()) == {5} and quantizer.re_embed == 5
    codes = torch.tensor([4, 1, 2, 0, 4])[indices]
    torch.testing.assert_close(
        quantizer.get_codebook_entry(indices), plain.get_codebook_entry(codes)
    )
    for table, level in zip(quantizer.level_tables, plain.level_tables, strict=True):
        assert torch.equal(table, level[[4, 1, 2, 0, 4]])
    if name == "shared":
        taken = torch.bincount(whole.flatten(), minlength=6) > 0
        assert torch.equal(quantizer.levels[0].idle.batches == 0, taken)
        assert torch.equal(plain.levels[0].idle.batches == 0, taken)


@pytest.mark.parametrize("name", MADE)
def test_all_codes_that_are_taken_get_gradients(name: str, z: Tensor) -> None:
    quantizer, z = build(name), z.clone().requires_grad_()
    quantizer(z)[1].backward()
    assert all(p.grad is not None and p.grad.any() for p in quantizer.parameters())
    z.grad = None
    if "residual" in name or name == "shared":
        quantizer(z)[0].sum().backward()
        assert z.grad is not None
        torch.testing.assert_close(z.grad, torch.ones_like(z))


@pytest.mark.parametrize("shared", [False, True])
def test_equals_the_library(z: Tensor, shared: bool) -> None:
    """Whose loss is one square for both sides: ours, of beta 1, is two. The gradient of its result
    is ours where residuals pass gradients on, that of its loss where they do not."""
    ours = build("shared" if shared else "residual")
    for level in ours.levels:
        level.beta = 1.0
    loss_gradients = []
    for fraction in (0.0, 1.0):
        theirs = ResidualVQ(
            **LIBRARY,
            shared_codebook=shared,
            quant_grad_frac=fraction,
        )
        for level, layer in enumerate(theirs.layers):
            layer._codebook.embed.data.copy_(ours.level_tables[level][None])
        own, other = z.clone().requires_grad_(), as_rows(z).clone().requires_grad_()
        z_q, loss, (_, _, indices) = ours(own)
        expected, places, losses = theirs(other)
        assert torch.equal(indices.flatten(1, 2), places)
        close(as_rows(z_q), expected)
        close(loss, 2 * losses.sum())
        if fraction == 1.0:
            weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
            (z_q * weights).sum().backward()
            (expected * as_rows(weights)).sum().backward()
        else:
            loss.backward()
            losses.sum().backward()  # pulled on both sides at once
            for level, layer in enumerate(theirs.layers):
                embedding = ours.levels[0 if shared else level].embedding
                loss_gradients.append((embedding.weight.grad, layer._codebook.embed.grad[0]))
        assert own.grad is not None
        close(as_rows(own.grad), other.grad)
    for mine, library in loss_gradients:
        close(mine, library)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_groups_equal_the_library(z: Tensor, fraction: float) -> None:
    """Whose losses are one for each group and level; gradients are as above."""
    ours = build("grouped residual")
    theirs = GroupedResidualVQ(
        **LIBRARY,
        groups=2,
        quant_grad_frac=fraction,
    )
    pairs = []
    for group, rvq in zip(ours.groups, theirs.rvqs, strict=True):
        for level, layer in zip(group.levels, rvq.layers, strict=True):
            level.beta = 1.0
            layer._codebook.embed.data.copy_(level.codes[None])
            pairs.append((level.embedding.weight, layer._codebook.embed))
    own, other = z.clone().requires_grad_(), as_rows(z).clone().requires_grad_()
    z_q, loss, (_, _, indices) = ours(own)
    expected, places, losses = theirs(other)
    assert torch.equal(indices.flatten(1, 2), torch.cat(list(places), dim=2))
    close(as_rows(z_q), expected)
    mean_of_groups = losses.sum() / 2
    close(loss, 2 * mean_of_groups)
    close(as_rows(ours.get_codebook_entry(indices)), theirs.get_output_from_indices(places))
    if fraction == 1.0:
        weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
        (z_q * weights).sum().backward()
        (expected * as_rows(weights)).sum().backward()
    else:
        loss.backward()
        mean_of_groups.backward()
        for mine, library in pairs:
            assert mine.grad is not None
            close(mine.grad, library.grad[0])
    assert own.grad is not None
    close(as_rows(own.grad), other.grad)


def as_rows(z: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h * w, C]: the library does not take the former here."""
    return z.flatten(2).transpose(1, 2)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_use_is_counted_by_level(z: Tensor) -> None:
    quantizer = build("grouped residual")
    _, _, (_, _, indices) = quantizer(z)
    flat = counted_indices(quantizer, indices)
    assert flat.shape == (2, 5 * 3 * 6) and counted_codes(quantizer) == 36
    counts = torch.bincount(flat.flatten(), minlength=36)
    uses = codebook_uses(quantizer, counts)
    third = indices[..., 2].unique().numel()
    assert uses["codebook_usage_0_2"] == pytest.approx(third / 6)
    assert uses["codebook_usage"] == pytest.approx(float((counts > 0).float().mean()))


def test_use_of_a_shared_table(z: Tensor) -> None:
    quantizer = build("shared")
    _, _, (_, _, indices) = quantizer(z)
    flat = counted_indices(quantizer, indices)
    uses = codebook_uses(quantizer, torch.bincount(flat.flatten(), minlength=18))
    assert uses["codebook_usage"] == pytest.approx(indices.unique().numel() / 6)
    assert uses["codebook_usage_2"] == pytest.approx(indices[..., 2].unique().numel() / 6)


def uses_of(quantizer: Any, indices: Tensor) -> dict[str, float]:
    flat = counted_indices(quantizer, indices).flatten()
    return codebook_uses(quantizer, torch.bincount(flat, minlength=counted_codes(quantizer)))


def test_use_of_tables_that_each_group_has_and_its_levels_share() -> None:
    shared = {**RESIDUAL, "params": {"n_codes": 2, "e_dim": 1, "levels": 2, "shared": True}}
    quantizer = GroupedQuantizer(2, shared)
    indices = torch.zeros(1, 3, 3, 4, dtype=torch.long)
    indices[..., 2:] = 1  # each group takes one code of its two, always
    uses = uses_of(quantizer, indices)
    assert quantizer.table_numbers == (0, 0, 1, 1) and code_count(quantizer) == quantizer.n_e == 4
    assert uses["codebook_usage"] == 0.5 and uses["codebook_perplexity"] == pytest.approx(2)
    assert uses["codebook_usage_0_1"] == 0.5 and uses["codebook_perplexity_1_0"] == 1
    indices[..., 1] = 1  # the first group both
    assert uses_of(quantizer, indices)["codebook_usage"] == 0.75


@pytest.mark.parametrize(("n_e", "usage"), [(4, 1 / 4), (8, 2 / 8)])
def test_levels_that_do_not_say_which_tables_they_share(n_e: int, usage: float) -> None:
    """Of a class of somebody's: all, if `n_e` is less than their sizes."""

    class Levels:
        level_sizes: dict[str, int] = {"a": 4, "b": 4}  # noqa: RUF012
        e_dim = 2

        def index_shape(self, height: int, width: int) -> tuple[int, ...]:
            return height, width, 2

        def split_levels(self, indices: Tensor) -> dict[str, Tensor]:
            return {"a": indices[..., 0], "b": indices[..., 1]}

    quantizer: Any = Levels()
    quantizer.n_e = n_e
    assert code_count(quantizer) == n_e
    uses = uses_of(quantizer, torch.full((1, 2, 2, 2), 3))
    assert uses["codebook_usage"] == usage


# ---------------------------------------------------------------------- remapped indices


USED = str(GOLDEN / "used.npy")  # 13 codes
UNKNOWN: Any = ["random", "extra", 3]


def remapped(unknown: Any, kind: str = "nearest.VectorQuantizer2") -> GroupedQuantizer:
    params: dict[str, Any] = {"remap": USED, "unknown_index": unknown}
    params |= {
        "nearest.VectorQuantizer2": {"n_e": 40, "e_dim": 2, "beta": 0.25},
        "lfq.LFQ": {"n_e": 64},
        "fsq.FSQ": {"levels": [8, 8]},
        "gumbel.GumbelQuantize": {"num_hiddens": 2, "embedding_dim": 2, "n_embed": 40},
    }[kind]
    torch.manual_seed(2)
    return GroupedQuantizer(2, {"target": VQ + kind, "params": params})


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize(
    "kind", ["nearest.VectorQuantizer2", "lfq.LFQ", "fsq.FSQ", "gumbel.GumbelQuantize"]
)
def test_groups_of_remapped_codes(kind: str, unknown: Any) -> None:
    quantizer = remapped(unknown, kind)
    width: int = quantizer.input_channels
    z = torch.randn(2, width, 5, 6, generator=torch.Generator().manual_seed(3))
    _, _, (_, _, indices) = quantizer(z)
    count = 14 if unknown == "extra" else 13
    assert indices.shape == (2, 5, 6, 2) and indices.max() < count == quantizer.re_embed
    assert quantizer.level_sizes == {"0": count, "1": count}
    assert counted_codes(quantizer) == code_count(quantizer) == 2 * count
    grids = [
        table[level].permute(0, 3, 1, 2)
        for table, level in zip(
            quantizer.level_tables, quantizer.split_levels(indices).values(), strict=True
        )
    ]
    entry = quantizer.get_codebook_entry(indices)
    assert torch.equal(quantizer.combined(*grids), entry) and entry.shape == (2, width, 5, 6)
    uses = uses_of(quantizer, indices)
    assert uses["codebook_usage_1"] == len(indices[..., 1].unique()) / count
    parts = [one.unique().numel() for one in indices.unbind(3)]
    assert uses["codebook_usage"] == pytest.approx(sum(parts) / (2 * count))


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_use_of_remapped_codes_of_a_pyramid_and_of_one_grid(unknown: Any) -> None:
    """Shares are of the codes that there are indices for."""
    options: Any = {"remap": USED, "unknown_index": unknown}
    count = 14 if unknown == "extra" else 13
    pyramid = MultiScaleQuantizer(40, 4, [1, 2, 4], **options)
    assert set(pyramid.level_sizes.values()) == {count} and code_count(pyramid) == count
    indices = torch.full((2, 21), count - 1)
    uses = uses_of(pyramid, indices)
    assert uses["codebook_usage"] == uses["codebook_usage_2x2"] == 1 / count
    one = VectorQuantizer2(40, 4, 0.25, **options)
    assert counted_codes(one) == code_count(one) == count
    assert uses_of(one, indices)["codebook_usage"] == 1 / count


def test_wrong_widths_are_a_sentence() -> None:
    with pytest.raises(UserError, match="e_dim is 5 channels for 2 groups, and that does not divi"):
        GroupedQuantizer(2, COSINE, e_dim=5)
    with pytest.raises(UserError, match="e_dim is 8 .* their quantizers have 2; make these 4"):
        GroupedQuantizer(2, COSINE, e_dim=8)
    network = {"in_channels": 4, "out_ch": 4, "resolution": 8, "double_z": False, "z_channels": 6}
    network |= {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": []}
    two = {"n_embed": 6, "embed_dim": 3, "ddconfig": network}
    with pytest.raises(UserError, match="TwoLevelQuantizer has several"):
        GroupedQuantizer(2, {"target": VQ + "two_level.TwoLevelQuantizer", "params": two})
