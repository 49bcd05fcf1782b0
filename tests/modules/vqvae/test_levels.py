"""Residual and grouped quantizers, whose positions have several indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import ResidualVQ

from taming.errors import UserError
from taming.models.codes import codebook_uses, counted_codes, counted_indices
from taming.modules.vqvae.codebook import LevelTables, SeveralLevels
from taming.modules.vqvae.grouped import GroupedQuantizer
from taming.modules.vqvae.residual import ResidualQuantizer

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
            dim=4,
            num_quantizers=3,
            codebook_size=6,
            learnable_codebook=True,
            ema_update=False,
            rotation_trick=False,
            shared_codebook=shared,
            commitment_weight=1.0,
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
