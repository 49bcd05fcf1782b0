"""Codes that no batch uses come back, in every quantizer, and in all processes alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from taming.modules.vqvae import revival
from taming.modules.vqvae.quantize import GumbelQuantize, VectorQuantizer, VectorQuantizer2
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


def test_the_counts_are_saved_only_where_they_are_kept() -> None:
    assert "idle.batches" in far_away().state_dict()
    assert list(VectorQuantizer2(4, 2, 0.25).state_dict()) == ["embedding.weight"]
