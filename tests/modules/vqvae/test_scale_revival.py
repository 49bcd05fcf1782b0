"""Codes that a scale of a pyramid does not use come back, and coarse scales do not collapse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taming.modules.vqvae import scale_revival
from taming.modules.vqvae.multi_scale import MultiScaleQuantizer
from taming.modules.vqvae.scale_revival import ScaleRevival


def counted(*used: list[int], codes: int = 4) -> Tensor:
    """Hits [K, V] of scales that have taken these codes, once each."""
    return torch.stack([F.one_hot(torch.tensor(one), codes).sum(dim=0) for one in used]).float()


def test_codes_that_no_scale_uses_are_put_on_residuals_of_any() -> None:
    revival = ScaleRevival(2, 4, after=2, least_use=0.0)
    table = torch.zeros(4, 2)
    rows = [torch.full((3, 2), 1.0), torch.full((5, 2), 2.0)]
    hits = counted([0, 0], [1])
    revival.follow(table, hits, hits, rows)
    assert table.eq(0).all() and revival.idle.tolist() == [[0, 1, 1, 1], [1, 0, 1, 1]]
    seen = set()
    for _ in range(20):
        revival.follow(table, hits, hits, rows)
        assert table[:2].eq(0).all()
        seen |= {float(value) for value in table[2:].flatten()}
    assert seen - {0.0} == {1.0, 2.0}
    assert revival.idle[:, 2:].max() <= 2  # they get another two batches


def test_a_scale_below_its_goal_gets_what_is_used_least() -> None:
    revival = ScaleRevival(2, 8, after=2, least_use=0.5)
    assert revival.most_moved == 1
    table, rows = torch.zeros(8, 2), [torch.full((3, 2), 1.0), torch.full((9, 2), 2.0)]
    hits = counted([0, 0, 0], [1, 2, 3, 4, 5, 6, 7], codes=8)
    recent = torch.tensor([[9.0, 0, 0, 0, 0, 0, 0, 0], [0, 5, 4, 3, 2, 3, 4, 5]])
    revival.follow(table, hits, recent, rows)
    assert table.eq(0).all()  # all were used within two batches, as far as is known
    revival.follow(table, hits, recent, rows)
    assert table.sum(dim=1).tolist() == [0, 0, 0, 0, 2, 0, 0, 0]  # a residual of the first scale
    assert revival.idle[:, 4].tolist() == [0, 0]
    recent[1, 4] = 9
    revival.follow(table, hits, recent, rows)
    assert table.sum(dim=1).tolist() == [0, 0, 0, 2, 2, 0, 0, 0]
    revival.follow(table, counted([0, 3, 4, 5], [1, 2, 6, 7], codes=8), recent, rows)
    assert table.sum(dim=1).tolist() == [0, 0, 0, 2, 2, 0, 0, 0]  # it uses half of the codes


def test_no_scale_is_asked_for_more_codes_than_it_has_positions() -> None:
    revival = ScaleRevival(2, 8, after=2, least_use=0.5)
    hits = torch.zeros(2, 8)
    hits[0, 0], hits[1, 0] = 1, 20
    unused = torch.ones(2, 8, dtype=torch.bool)
    unused[:, 0] = False
    assert revival.lacking(unused, hits).tolist() == [0.5 * 2 - 1, 0.5 * 8 - 1]


def test_processes_take_the_same_residuals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_revival, "same_on_all_ranks", lambda rows: torch.full_like(rows, 7))
    revival, table = ScaleRevival(1, 2, after=1, least_use=1.0), torch.zeros(2, 3)
    hits = counted([0], codes=2)
    revival.follow(table, hits, hits, [torch.ones(4, 3)])
    assert table.tolist() == [[0, 0, 0], [7, 7, 7]]


def codes_of_scales(revive_after: int, steps: int = 80) -> list[int]:
    """How many of 32 codes each scale uses of the last ten batches, of images whose mean is large
    and whose detail is small; trained by the quantizer's own loss."""
    torch.manual_seed(0)
    options = {"quant_resi": 0.0, "revive_after": revive_after, "least_use": 0.7}
    quantizer = MultiScaleQuantizer(32, 2, [1, 2, 4], **options)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.005)
    used = torch.zeros(3, 32, dtype=torch.bool)
    for step in range(steps):
        z = 3 * torch.randn(16, 2, 1, 1) + 0.3 * torch.randn(16, 2, 4, 4)
        _, loss, (_, _, indices) = quantizer(z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= steps - 10:
            for name, grid in enumerate(quantizer.split(indices, quantizer.sizes(4, 4))):
                used[name, grid.unique()] = True
    return used.sum(dim=1).tolist()


def test_small_scales_do_not_collapse() -> None:
    collapsed, revived = codes_of_scales(0), codes_of_scales(10)
    assert min(collapsed) <= 8 and min(revived) > 16, (collapsed, revived)


def test_it_is_made_if_asked() -> None:
    assert MultiScaleQuantizer(4, 2, [1]).revival is None
    revival = MultiScaleQuantizer(100, 2, [1], revive_after=10, least_use=0.3).revival
    assert revival is not None and (revival.after, revival.least_use) == (10, 0.3)
    assert revival.most_moved == 3
