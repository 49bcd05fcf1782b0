"""Cut-outs: the views of an image that a guide sees, all of one size.

Without them an optimized image soon is what deceives the guide, and is nothing for people to see.
A cut-out is a square part of the image, of random size and place, turned, sheared and flipped a
little, with other colors and with noise. All cut-outs of a step are read from the image by one
`grid_sample`, or by two where their sizes differ much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.command_line import flag
from taming.errors import UserError
from taming.guidance.encoders import ClassEncoder
from taming.pictures import GRAY_WEIGHTS

MOST_CUTOUTS = 4096


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """How an image is cut. What is None is as usual for the guide, see `usual_for`."""

    cutouts: int = flag(32, "views of the image that the guide sees in every step")
    cut_power: float = flag(
        1.0, "of their sizes: u ** power for u in [0, 1); above 1 more are small, below 1 large"
    )
    cut_min: float | None = flag(
        None, "the smallest, as a share of the shorter side (default 0.2; for classes 0.8)"
    )
    cut_flip: float | None = flag(
        None, "the share that is flipped left to right (default 0.5; for classes 0)"
    )
    cut_degrees: float = flag(10.0, "most degrees of turning, and of shearing")
    cut_jitter: float = flag(0.1, "most change of brightness, contrast and saturation, as a share")
    cut_noise: float = flag(0.05, "most deviation of the noise, of pixels from 0 to 1")

    def __post_init__(self) -> None:
        for name, most in (("cut_min", 1.0), ("cut_flip", 1.0), ("cut_jitter", 1.0)):
            self._require(name, 0.0, most)
        for name, most in (("cut_power", 100.0), ("cut_degrees", 180.0), ("cut_noise", 10.0)):
            self._require(name, 0.0, most)
        self._require("cutouts", 1, MOST_CUTOUTS)

    def _require(self, name: str, least: float, most: float) -> None:
        value = vars(self)[name]
        if value is not None and not least <= value <= most:  # not a number, too
            raise UserError(f"--{name} must be from {least:g} to {most:,.10g}, not {value}")

    def usual_for(self, encoder: object) -> CutSettings:
        """These settings with what is None decided: a class is one of whole images, as they are."""
        whole = isinstance(encoder, ClassEncoder)
        smallest = (0.8 if whole else 0.2) if self.cut_min is None else self.cut_min
        flipped = (0.0 if whole else 0.5) if self.cut_flip is None else self.cut_flip
        return replace(self, cut_min=smallest, cut_flip=flipped)

    def describe(self) -> dict[str, float | None]:
        """All settings as JSON values."""
        return {entry.name: vars(self)[entry.name] for entry in fields(self)}


class Chance(NamedTuple):
    """Where the random numbers of one image come from."""

    cpu: torch.Generator  # what decides shapes
    device: torch.Generator  # what fills large tensors


class Views(NamedTuple):
    """Cut-outs that have been drawn: how to read each from an image. N of them, largest last."""

    maps: Tensor  # [N, 2, 3], from places in the cut-out, -1 to 1, to places in the image
    levels: Sequence[int]  # by which power of 2 the image is reduced before, N in rising order
    colors: Tensor | None  # [N, 3]: factors of the pixel and of its gray, and what is added
    noise: Tensor | None  # [N, 3, size, size]


def draw_views(cuts: CutSettings, image: tuple[int, int], size: int, chance: Chance) -> Views:
    """Draw the cut-outs, of `size` pixels a side, of an image (height, width)."""
    n, generator = cuts.cutouts, chance.cpu

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    smallest = 0.0 if cuts.cut_min is None else cuts.cut_min
    shares = smallest + (1 - smallest) * uniform(0, 1) ** cuts.cut_power
    # One of less than 2 pixels would have nothing but one color.
    sides = (shares * min(image)).sort().values.clamp_min(min(2, *image))  # pixels, (N,)
    mirror = torch.where(uniform(0, 1) < (cuts.cut_flip or 0.0), -1.0, 1.0)
    radians = math.radians(cuts.cut_degrees)
    turn, shear = uniform(-radians, radians), uniform(-radians, radians).clamp(-1.4, 1.4).tan()
    halves = torch.stack((sides / image[1], sides / image[0]), dim=1)  # of the image's: x, y
    centers = torch.stack((uniform(-1, 1), uniform(-1, 1)), dim=1) * (1 - halves)
    cos, sin = turn.cos(), turn.sin()
    rows = torch.stack(
        [
            torch.stack((mirror * cos, shear * cos - sin)),
            torch.stack((mirror * sin, shear * sin + cos)),
        ]
    )  # (2, 2, N), a turned and sheared square in pixels
    maps = torch.cat((rows.permute(2, 0, 1) * halves[:, :, None], centers[:, :, None]), dim=2)
    levels = [max(0, math.floor(math.log2(side / size))) for side in sides.tolist()]
    return Views(maps, levels, _draw_colors(cuts, generator), _draw_noise(cuts, size, chance))


def _draw_colors(cuts: CutSettings, generator: torch.Generator) -> Tensor | None:
    """With brightness b, contrast c about the middle and saturation s, a pixel p of gray g becomes
    c (b (s p + (1 - s) g) - 1/2) + 1/2."""
    if not cuts.cut_jitter:
        return None
    spread = cuts.cut_jitter * (2 * torch.rand(3, cuts.cutouts, generator=generator) - 1)
    brightness, contrast, saturation = 1 + spread
    both = brightness * contrast
    return torch.stack((both * saturation, both * (1 - saturation), (1 - contrast) / 2), dim=1)


def _draw_noise(cuts: CutSettings, size: int, chance: Chance) -> Tensor | None:
    if not cuts.cut_noise:
        return None
    device = chance.device.device
    deviation = cuts.cut_noise * torch.rand(cuts.cutouts, 1, 1, 1, generator=chance.cpu)
    shape = (cuts.cutouts, 3, size, size)
    return torch.randn(shape, generator=chance.device, device=device).mul_(deviation.to(device))


def cut(image: Tensor, views: Views, size: int) -> Tensor:
    """The views [N, 3, size, size] of an image [1, 3, H, W]; beyond its edges it is mirrored.

    A view that shrinks its part of the image to less than half is read from the image reduced
    before, so that all pixels count.
    """
    steps = (torch.arange(size, device=image.device) * 2 + 1) / size - 1  # centers of pixels
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.stack((x, y, torch.ones_like(x)), dim=2).view(-1, 3).to(image.dtype)
    grids = places @ views.maps.to(image).transpose(1, 2)  # (N, size * size, 2)
    parts = [
        # One image and one tall grid: the image's gradient is summed where it is.
        F.grid_sample(
            _reduced(image, level),
            grids[first:last].reshape(1, -1, size, 2),
            padding_mode="reflection",
            align_corners=False,
        )
        for level, first, last in _groups(views.levels)
    ]
    tall = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)  # (1, 3, N * size, size)
    cutouts = tall.view(3, -1, size, size).transpose(0, 1)
    if views.colors is not None:
        cutouts = _recolored(cutouts, views.colors.to(image))
    return cutouts if views.noise is None else cutouts + views.noise.to(image)


def _groups(levels: Sequence[int]) -> list[tuple[int, int, int]]:
    """(level, first, last + 1) of views of one level, which stand side by side."""
    firsts = [i for i, level in enumerate(levels) if i == 0 or level != levels[i - 1]]
    return [(levels[a], a, b) for a, b in zip(firsts, [*firsts[1:], len(levels)], strict=True)]


def _reduced(image: Tensor, level: int) -> Tensor:
    if not level:
        return image
    height, width = (max(1, -(-side // 2**level)) for side in image.shape[2:])
    return F.adaptive_avg_pool2d(image, (height, width))


def _recolored(cutouts: Tensor, colors: Tensor) -> Tensor:
    own, gray, added = colors.t()[:, :, None, None, None]  # (N, 1, 1, 1) each
    weights = torch.stack([cutouts.new_full((1, 1), weight) for weight in GRAY_WEIGHTS])
    return own * cutouts + gray * (cutouts * weights).sum(1, keepdim=True) + added
