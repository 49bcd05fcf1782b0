"""Codes that no batch uses come back, in every quantizer, and in all processes alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from taming.modules.vqvae import revival
from taming.modules.vqvae.grouped import GroupedQuantizer
from taming.modules.vqvae.quantize import GumbelQuantize, VectorQuantizer, VectorQuantizer2
from taming.modules.vqvae.residual import ResidualQuantizer
from taming.modules.vqvae.revival import IdleCodes


def far_away(cls: Any = VectorQuantizer2) -> Any:
    """A quantizer with one code in reach and three that no latent is near."""
    quantizer = cls(4, 2, 0.25, revive_after=2).train()
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[0.0, 0], [90, 90], [91, 90], [92, 90]]))
    return quantizer


@pytest.mark.parametrize("cls", [VectorQuantizer2, VectorQuantizer])
def test_a_dead_code_is_put_on_a_latent(cls: Any) -> None:
    quantizer = far_away(cls)
    z = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer(z)[1].backward()
    with torch.no_grad():  # the discriminator's turn, which does not count
        quantizer(z)
        quantizer(z)
    quantizer.eval()(z)
    quantizer.train()(z)
    assert quantizer.idle.batches.tolist() == [0, 2, 2, 2] and quantizer.codes[1, 0] == 90
    loss = quantizer(z)[1]
    rows = z.permute(0, 2, 3, 1).reshape(-1, 2)
    for code in quantizer.codes[1:]:
        assert (rows == code).all(dim=1).any()
    assert quantizer.codes[0].tolist() == [0, 0] and quantizer.idle.batches.max() <= 1
    loss.backward()  # the codebook was changed before it was part of a graph
    assert quantizer.embedding.weight.grad.abs().sum() > 0


def test_processes_count_together_and_take_the_same_latents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = IdleCodes(3, after=1)
    monkeypatch.setattr(revival, "sum_over_ranks", lambda counts: counts + torch.tensor([0, 1, 0]))
    idle.follow(torch.tensor([0, 0]))  # the other process has used code 1
    assert idle.batches.tolist() == [0, 0, 1]
    assert idle.take_dead().tolist() == [False, False, True] and idle.batches.tolist() == [0, 0, 0]
    monkeypatch.setattr(revival, "same_on_all_ranks", lambda rows: torch.full_like(rows, 7))
    table = nn.Parameter(torch.zeros(3, 2))
    revival.replace(
        table, torch.tensor([False, False, True]), revival.one_for_each(torch.randn(5, 2), 3)
    )
    assert table.tolist() == [[0, 0], [0, 0], [7, 7]]


def test_a_dead_code_becomes_the_twin_of_a_probable_one() -> None:
    torch.manual_seed(0)
    quantizer = GumbelQuantize(3, 2, 4, revive_after=1, kl_weight=1.0).train()
    with torch.no_grad():
        quantizer.proj.bias.copy_(torch.tensor([50.0, -50, -50, -50]))
    z = torch.randn(2, 3, 4, 4)
    quantizer(z)
    assert quantizer.idle.batches.tolist() == [0, 1, 1, 1]
    _, loss, (_, _, indices) = quantizer(z)
    for table in (quantizer.proj.weight, quantizer.proj.bias, quantizer.embed.weight):
        assert torch.equal(table[1:], table[:1].expand_as(table[1:]))
    assert len(indices.unique()) == 4  # all are sampled now
    loss.backward()


def shared_by_levels() -> ResidualQuantizer:
    """The first level takes code 1, the others code 0, and nobody the rest."""
    quantizer = ResidualQuantizer(40, 2, 3, shared=True, revive_after=2).train()
    with torch.no_grad():
        quantizer.level_tables[0].fill_(90)[:2] = torch.tensor([[0.0, 0], [4, 0]])
    return quantizer


def test_a_batch_is_one_of_all_levels_that_share_a_table() -> None:
    torch.manual_seed(0)
    quantizer, table = shared_by_levels(), shared_by_levels().level_tables[0].detach().clone()
    idle = quantizer._of(0).idle
    assert idle is not None and "levels.0.idle.batches" in quantizer.state_dict()
    z = torch.tensor([4.0, 0])[:, None, None] + 0.1 * torch.randn(5, 2, 4, 4)
    _, loss, (_, _, indices) = quantizer(z)
    assert indices.flatten(0, 2).unique(dim=0).tolist() == [[1, 0, 0]]
    loss.backward()
    with torch.no_grad():  # the discriminator's turn
        quantizer(z)
    quantizer.eval()(z)
    assert idle.batches.tolist() == [0, 0, *[1] * 38]
    assert torch.equal(quantizer.level_tables[0], table)
    _, loss, _ = quantizer.train()(z)
    loss.backward()  # although codes that no level takes have changed
    assert torch.equal(quantizer.level_tables[0][:2], table[:2])
    given = z.permute(0, 2, 3, 1).reshape(-1, 2)
    residuals = (given - table[1]).detach()
    moved = quantizer.level_tables[0][2:]
    on_first, on_later = (
        ((moved[:, None] - rows).abs() < 1e-5).all(dim=2).any(dim=1) for rows in (given, residuals)
    )
    assert (on_first ^ on_later).all() and on_first.any() and on_later.any()


def test_groups_count_their_own_batches() -> None:
    inner: dict[str, Any] = {"n_codes": 40, "e_dim": 2, "levels": 3, "shared": True}
    target = "taming.modules.vqvae.residual.ResidualQuantizer"
    quantizer = GroupedQuantizer(
        2, {"target": target, "params": {**inner, "revive_after": 7}}
    ).train()
    for _ in range(3):
        quantizer(torch.randn(1, 4, 2, 2))
    state = {n: v for n, v in quantizer.state_dict().items() if n.endswith("batches")}
    assert list(state) == [f"groups.{group}.levels.0.idle.batches" for group in range(2)]
    assert all(batches.max() == 3 for batches in state.values())


def test_the_counts_are_saved_only_where_they_are_kept() -> None:
    assert "idle.batches" in far_away().state_dict()
    assert list(VectorQuantizer2(4, 2, 0.25).state_dict()) == ["embedding.weight"]
