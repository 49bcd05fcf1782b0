from __future__ import annotations

import pytest
import torch

from taming.errors import UserError
from taming.modules.transformer import permuter
from tests.support import load_golden

GOLDEN, _ = load_golden("permuters")
ORDERS = ["Subsample", "ZCurve", "SpiralOut", "SpiralIn", "Random", "AlternateParsing"]


@pytest.mark.parametrize("key", sorted(GOLDEN))
def test_golden(key: str) -> None:
    name, size, buffer = key.split(".")
    height, width = (int(n) for n in (size if "x" in size else f"{size}x{size}").split("x"))
    actual = getattr(permuter, name)(height, width).state_dict()[buffer]
    assert actual.dtype == torch.int64
    assert torch.equal(actual, GOLDEN[key])


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (6, 4), (7, 7)])
def test_every_size_is_permuted_and_back(name: str, size: tuple[int, int]) -> None:
    module = getattr(permuter, name)(*size)
    x = torch.arange(2 * size[0] * size[1]).view(2, -1)
    assert torch.equal(module(x).sort(1).values, x)
    assert torch.equal(module(module(x), reverse=True), x)
    assert torch.equal(module(x)[0], module.forward_shuffle_idx)


def test_spiral_of_a_rectangle_walks_to_neighbors() -> None:
    order = permuter.SpiralIn(3, 5).forward_shuffle_idx
    steps = (order.div(5, rounding_mode="floor").diff().abs() + (order % 5).diff().abs()).tolist()
    assert steps == [1] * 14
    assert torch.equal(permuter.SpiralOut(3, 5).forward_shuffle_idx, order.flip(0))
    assert permuter.mortonify(2, 3) == 0b1101
    assert permuter.mortonify(0, 2**30) == 4**30 and permuter.mortonify(2**30, 0) == 2 * 4**30


def test_coarse_to_fine_takes_the_longer_sides_bits_too() -> None:
    assert permuter.Subsample(1, 4).forward_shuffle_idx.tolist() == [0, 2, 1, 3]
    assert permuter.Subsample(4, 1).forward_shuffle_idx.tolist() == [0, 2, 1, 3]


def test_identity_has_no_state() -> None:
    x = torch.arange(6).view(2, 3)
    assert torch.equal(permuter.Identity()(x, reverse=True), x)
    assert not permuter.Identity().state_dict()


@pytest.mark.parametrize("name", ORDERS)
def test_impossible_size(name: str) -> None:
    with pytest.raises(UserError, match="must be from 1 to"):
        getattr(permuter, name)(0, 4)


def test_latent_of_another_size() -> None:
    with pytest.raises(UserError, match="16 positions, but the latent has 64"):
        permuter.ZCurve(4, 4)(torch.zeros(1, 64))
    with pytest.raises(UserError, match="16 positions, but the latent has 9"):
        permuter.ZCurve(4, 4)(torch.zeros(1, 9))
