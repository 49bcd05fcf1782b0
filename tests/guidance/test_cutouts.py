from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taming.errors import UserError
from taming.guidance.cutouts import CutSettings, cut, draw_views
from taming.guidance.start import chance_for
from taming.pictures import GRAY_WEIGHTS
from tests.kit.guidance import Colors, small_guide

PLAIN = CutSettings(
    cutouts=3, cut_min=1.0, cut_flip=0.0, cut_degrees=0.0, cut_jitter=0.0, cut_noise=0.0
)
CPU = torch.device("cpu")


def views_of(image: Tensor, cuts: CutSettings, size: int, seed: int = 0) -> Tensor:
    height, width = image.shape[2:]
    return cut(image, draw_views(cuts, (height, width), size, chance_for(seed, 0, CPU)), size)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_whole_image_as_it_is(image: Tensor) -> None:
    torch.testing.assert_close(views_of(image, PLAIN, 16), image.expand(3, -1, -1, -1))
    flipped = views_of(image, replace(PLAIN, cut_flip=1.0), 16)
    torch.testing.assert_close(flipped, image.flip(3).expand(3, -1, -1, -1))


def test_a_part_is_where_its_map_says(image: Tensor) -> None:
    cuts = replace(PLAIN, cutouts=40, cut_min=0.5)
    views = draw_views(cuts, (16, 16), 8, chance_for(0, 0, CPU))
    sides = views.maps[:, 0, 0] * 16
    assert sides.min() >= 8 and sides.max() <= 16
    # A cut-out of exactly half the image at a whole place is that part of its pixels.
    corner = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, -0.5]])
    part = cut(image, views._replace(maps=corner[None], levels=[0]), 8)
    torch.testing.assert_close(part[0], image[0, :, :8, 8:])
    # All are inside of the image.
    assert ((views.maps[:, :, 2].abs() + views.maps[:, [0, 1], [0, 1]]) <= 1 + 1e-6).all()


def test_turned_squares_stay_squares_in_an_image_that_is_none() -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(128.0), indexing="ij")
    ramps = torch.stack((x, y, x))[None]  # pixels say where they are
    cuts = replace(PLAIN, cutouts=20, cut_min=0.3, cut_degrees=30.0)
    views = draw_views(cuts, (64, 128), 9, chance_for(1, 0, CPU))
    inner = views._replace(maps=torch.cat((views.maps[:, :, :2] * 0.5, views.maps[:, :, 2:]), 2))
    places = cut(ramps, inner, 9)
    right, down = (
        places[:, :2, 4, 5] - places[:, :2, 4, 4],
        places[:, :2, 5, 4] - places[:, :2, 4, 4],
    )
    angles = torch.atan2(right[:, 1], right[:, 0]).rad2deg()
    assert 5 < angles.abs().max() <= 30
    # A shear keeps the area and the side along it.
    area = right[:, 0] * down[:, 1] - right[:, 1] * down[:, 0]
    torch.testing.assert_close(area.sqrt(), right.norm(dim=1), rtol=1e-3, atol=1e-3)


def test_small_views_of_large_images_count_all_pixels() -> None:
    fine = torch.zeros(1, 3, 64, 64)
    fine[:, :, ::8, ::8] = 1.0  # one pixel of 64
    coarse = views_of(fine, PLAIN, 8)
    torch.testing.assert_close(coarse, torch.full_like(coarse, 1 / 64))
    views = draw_views(replace(PLAIN, cutouts=9, cut_min=0.1), (64, 64), 8, chance_for(0, 0, CPU))
    assert list(views.levels) == sorted(views.levels) and len(set(views.levels)) == 3
    parts = cut(torch.full((1, 3, 64, 64), 0.3), views, 8)
    torch.testing.assert_close(parts, torch.full((9, 3, 8, 8), 0.3))


def test_the_power_makes_them_small_or_large(image: Tensor) -> None:
    means = []
    for power in (0.2, 1.0, 5.0):
        cuts = replace(PLAIN, cutouts=500, cut_min=0.0, cut_power=power)
        views = draw_views(cuts, (160, 160), 8, chance_for(0, 0, CPU))
        means.append(float(views.maps[:, 0, 0].mean()))
    # The mean of u ** power is 1 / (power + 1).
    assert means == pytest.approx([1 / 1.2, 1 / 2, 1 / 6], abs=0.04)


def test_colors_and_noise(image: Tensor) -> None:
    cuts = replace(PLAIN, cutouts=2, cut_jitter=0.5)
    views = draw_views(cuts, (16, 16), 16, chance_for(0, 0, CPU))
    assert views.colors is not None
    own, gray, added = views.colors[1]
    weights = torch.tensor(GRAY_WEIGHTS).view(3, 1, 1)
    expected = own * image[0] + gray * (weights * image[0]).sum(0) + added
    torch.testing.assert_close(cut(image, views, 16)[1], expected)
    # A middle gray changes by its brightness alone: c (b / 2 - 1/2) + 1/2.
    chosen = own + gray
    middle = chosen / 2 + added
    assert 0.25 <= float(middle) <= 0.75 + 0.125 and abs(float(chosen) - 1) > 1e-3
    noisy = views_of(image, replace(PLAIN, cutouts=64, cut_noise=0.2), 16) - image
    deviations = noisy.flatten(1).std(dim=1)
    assert deviations.max() < 0.22 and deviations.min() < 0.05
    assert abs(float(deviations.mean()) - 0.1) < 0.02


def test_the_seed_decides(image: Tensor) -> None:
    cuts = CutSettings(cutouts=4, cut_min=0.2, cut_flip=0.5)
    first, again, other = (views_of(image, cuts, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_gradients_are_those_of_written_out_cuts(image: Tensor) -> None:
    image = F.interpolate(image, (24, 40)).requires_grad_()
    cuts = replace(PLAIN, cutouts=6, cut_min=0.2, cut_degrees=20.0)
    views = draw_views(cuts, (24, 40), 4, chance_for(2, 0, CPU))
    weights = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    (ours,) = torch.autograd.grad((cut(image, views, 4) * weights).sum(), image)
    total = torch.zeros(())
    for one, level, weight in zip(views.maps, views.levels, weights, strict=True):
        smaller = F.avg_pool2d(image, 2**level)
        grid = F.affine_grid(one[None], [1, 3, 4, 4], align_corners=False)
        part = F.grid_sample(smaller, grid, padding_mode="reflection", align_corners=False)
        total = total + (part[0] * weight).sum()
    (expected,) = torch.autograd.grad(total, image)
    torch.testing.assert_close(ours, expected)


def test_classes_are_of_whole_images() -> None:
    usual = CutSettings().usual_for(small_guide())
    assert (usual.cut_min, usual.cut_flip) == (0.8, 0.0)
    usual = CutSettings().usual_for(Colors())
    assert (usual.cut_min, usual.cut_flip) == (0.2, 0.5)
    own = CutSettings(cut_min=0.4, cut_flip=0.1).usual_for(small_guide())
    assert (own.cut_min, own.cut_flip) == (0.4, 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutouts": 0}, "--cutouts must be from 1 to 4,096, not 0"),
        ({"cut_min": 1.5}, "--cut_min must be from 0 to 1, not 1.5"),
        ({"cut_flip": -0.1}, "--cut_flip must be from 0 to 1"),
        ({"cut_power": float("nan")}, "--cut_power must be from 0 to 100, not nan"),
        ({"cut_noise": -1.0}, "--cut_noise must be from 0 to 10"),
        ({"cut_degrees": 181.0}, "--cut_degrees must be from 0 to 180"),
        ({"cut_jitter": 2.0}, "--cut_jitter must be from 0 to 1"),
    ],
)
def test_values_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CutSettings(**options)  # type: ignore[arg-type]
