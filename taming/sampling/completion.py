"""Which part of an image is kept when the rest is sampled: completion, inpainting, outpainting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.first_stage import FirstStage
from taming.pictures import Placed, Sizes
from taming.sampling.conditions import GivenImage, read_pixels, whole_tokens

HALVES = ("top-half", "bottom-half", "left-half", "right-half")


@dataclass(frozen=True)
class Photo:
    """A picture [1, C, H, W] as a first stage reads it, in whole tokens, and how it was made of an
    image of the user's."""

    picture: Tensor
    placed: Placed


def read_photo(
    stage: FirstStage, path: str, trained: Sizes, size: Sizes | None, full_size: bool = False
) -> Photo:
    """An image resized to `size` in pixels, if one is given; else at most as large as those of
    training, `trained` in tokens, unless `full_size`."""
    factor = stage.downsampling_factor
    image = GivenImage.read(stage, path)
    placed = _place(image.size, factor, trained, size, full_size)
    placed = replace(placed, size=whole_tokens(placed.size, factor))
    return Photo(image.placed(placed).input(), placed)


def _place(
    before: Sizes, factor: int, trained: Sizes, size: Sizes | None, full_size: bool
) -> Placed:
    if size is not None:
        return Placed.covering(before, size)
    if full_size or any(old // factor <= new for old, new in zip(before, trained, strict=True)):
        return Placed.whole(before)
    return Placed.reduced(before, (trained[0] * factor, trained[1] * factor))


def keep_mask(keep: str, placed: Placed | Sizes, factor: int, *, read_files: bool = True) -> Tensor:
    """Which tokens are kept: bool (H / factor, W / factor), those with all their pixels kept.

    Args:
        keep: `top-half`, `bottom-half`, `left-half`, `right-half` of the picture; a box
            `x0,y0,x1,y1` in the image's pixels; or an image file, white where pixels are kept and
            black elsewhere, of the size of the image or of the picture.
        placed: how the picture, of multiples of `factor`, was made of the image; or its size, if
            it is the image.
        read_files: whether an image file may be named; others than the user may not.

    Raises:
        UserError: for anything else, and if nothing would be kept or sampled.
    """
    placed = placed if isinstance(placed, Placed) else Placed.whole(placed)
    region = _marked(keep, placed, factor, _KEPT, read_files=read_files)
    tokens = _full_tokens(region.whole_pixels(region.marked), factor)
    if not tokens.any():
        patch = f"'{keep}' keeps no whole patch of {factor} x {factor} pixels"
        raise UserError(
            f"{patch}{_once_placed(placed)}; keep more of the image, or sample one from nothing"
        )
    if tokens.all():
        raise UserError(
            f"'{keep}' keeps the whole image, so that there is nothing to sample; keep less of it"
        )
    return tokens


def changed_mask(changed: str, placed: Placed, factor: int) -> tuple[Tensor, Tensor]:
    """What of an image may change: tokens, bool (H / factor, W / factor), those with any pixel of a
    region; and these pixels, bool (H, W).

    The region is given as what is kept is to `keep_mask`, white where an image may change.

    Raises:
        UserError: as `keep_mask` does, and if nothing would change.
    """
    region = _marked(changed, placed, factor, _CHANGED)
    kept = region.whole_pixels(~region.marked)
    tokens = ~_full_tokens(kept, factor)
    if not tokens.any():
        raise UserError(
            f"'{changed}' marks no pixel of the image{_once_placed(placed)}, so that nothing would "
            "change"
        )
    return tokens, ~kept


class _Region(NamedTuple):
    """Pixels that are marked, bool (H, W), and how the picture is made of what they are of."""

    marked: Tensor
    placed: Placed

    def whole_pixels(self, pixels: Tensor) -> Tensor:
        """Those of the picture that are of pixels alone, bool (H, W) as `marked` is."""
        (top, left), (height, width) = self.placed.corner, self.placed.size
        if self.placed.resized != self.placed.before:
            shares = F.interpolate(pixels[None, None].float(), self.placed.resized, mode="area")
            pixels = shares[0, 0] == 1
        return pixels[top : top + height, left : left + width]


class _Meaning(NamedTuple):
    """Of a region, for errors: its flag, and what is done where a mask is white."""

    flag: str
    white: str


_KEPT, _CHANGED = _Meaning("--keep", "are kept"), _Meaning("--mask", "may change")


def _marked(
    text: str, placed: Placed, factor: int, meaning: _Meaning, *, read_files: bool = True
) -> _Region:
    """A half, a box or a file."""
    given = read_files and Path(text).is_file()
    whole = Placed.whole(placed.size)
    if given:
        pixels = _read_mask(Path(text), (placed.before, placed.size), meaning)
        return _Region(pixels, placed if tuple(pixels.shape) == placed.before else whole)
    if text in HALVES:
        return _Region(_within(_half(text, placed.size, factor), placed.size), whole)
    return _Region(_within(_box(text, placed.before, meaning), placed.before), placed)


def _full_tokens(pixels: Tensor, factor: int) -> Tensor:
    """Tokens all of whose pixels are marked."""
    height, width = pixels.shape
    return pixels.view(height // factor, factor, width // factor, factor).all(3).all(1)


def _once_placed(placed: Placed) -> str:
    """In which pixels boxes and masks are, for errors; nothing if they are the picture's."""
    if placed == Placed.whole(placed.before):
        return ""
    before, now = (f"{width} x {height}" for height, width in (placed.before, placed.size))
    return (
        " once the image is resized or cut off: boxes and masks are in its own "
        f"{before} pixels, not {now}"
    )


def _within(box: tuple[int, int, int, int], size: Sizes) -> Tensor:
    x0, y0, x1, y1 = box
    pixels = torch.zeros(*size, dtype=torch.bool)
    pixels[y0:y1, x0:x1] = True
    return pixels


def _half(name: str, size: Sizes, factor: int) -> tuple[int, int, int, int]:
    height, width = size
    y, x = (side // factor // 2 * factor for side in size)
    return {
        "top-half": (0, 0, width, y),
        "bottom-half": (0, y, width, height),
        "left-half": (0, 0, x, height),
        "right-half": (x, 0, width, height),
    }[name]


def _read_mask(path: Path, sizes: Sequence[Sizes], meaning: _Meaning) -> Tensor:
    values = torch.from_numpy(read_pixels(path, "mask").copy())
    if tuple(values.shape) not in sizes:
        (height, width), (rows, columns) = values.shape, sizes[0]
        raise UserError(
            f"the mask {path} has {width} x {height} pixels, the image {columns} x {rows}"
        )
    if not ((values < 32) | (values > 223)).all():
        raise UserError(
            f"{path} is no mask: it has grays; make it white where pixels {meaning.white}"
        )
    return values > 127


def _box(text: str, size: Sizes, meaning: _Meaning) -> tuple[int, int, int, int]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(
            f"{meaning.flag} takes {', '.join(HALVES)}, a box x0,y0,x1,y1 or a mask image, not "
            f"'{text}'"
        )
    x0, y0, x1, y1 = (int(part) for part in parts)
    if not (x0 < x1 <= size[1] and y0 < y1 <= size[0]):
        raise UserError(
            f"the box {text} is not inside of the image, 0,0,{size[1]},{size[0]} in its own pixels"
        )
    return x0, y0, x1, y1


def known_indices(
    model: Net2NetTransformer,
    picture: Tensor,
    keep: Tensor | None = None,
    pad: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Tensor:
    """The indices (h, w) of a picture [1, C, H, W], -1 where `keep` bool (h, w) is False.

    `pad` are tokens, -1 too, to add on the left, top, right and bottom.
    """
    with torch.no_grad():
        indices = model.encode_to_indices(picture.to(model.device))[0].cpu()
    if keep is not None:
        indices = indices.masked_fill(~keep, -1)
    left, top, right, bottom = pad
    return F.pad(indices, (left, right, top, bottom), value=-1)
