"""Which part of an image is kept when the rest is sampled: completion, inpainting, outpainting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.first_stage import FirstStage
from taming.sampling.conditions import cut_to_tokens, read_picture, read_pixels

Sizes = tuple[int, int]
HALVES = ("top-half", "bottom-half", "left-half", "right-half")


@dataclass(frozen=True)
class Photo:
    """An image of the user's, [1, C, H, W] in whole tokens.

    If it was reduced, `original` is its (height, width) before, `reduced_to` what it had to cover;
    `cut_off` are the rows and columns at its end that fill no token.
    """

    picture: Tensor
    original: Sizes | None = None
    reduced_to: Sizes | None = None
    cut_off: Sizes = (0, 0)

    @property
    def given(self) -> Sizes | None:
        """(height, width) of the user's image, in whose pixels boxes and masks are, if it has been
        reduced or cut off."""
        height, width = self.picture.shape[2:]
        rows, columns = self.cut_off
        return self.original or ((height + rows, width + columns) if any(self.cut_off) else None)


def read_photo(
    stage: FirstStage, path: str, trained: Sizes, size: Sizes | None, full_size: bool = False
) -> Photo:
    """An image resized to `size` in pixels, if one is given; else at most as large as those of
    training, `trained` in tokens, unless `full_size`."""
    factor, channels = stage.downsampling_factor, stage.channels
    if size is not None:
        return Photo(cut_to_tokens(read_picture(path, channels, size), factor))
    whole = read_picture(path, channels)
    height, width = whole.shape[2:]
    rows, columns = trained
    if full_size or height // factor <= rows or width // factor <= columns:
        return Photo(cut_to_tokens(whole, factor), cut_off=(height % factor, width % factor))
    covered = (rows * factor, columns * factor)
    picture = read_picture(path, channels, reduce_to=covered)
    return Photo(cut_to_tokens(picture, factor), (height, width), covered)


def keep_mask(
    keep: str,
    size: tuple[int, int],
    factor: int,
    *,
    read_files: bool = True,
    original: tuple[int, int] | None = None,
) -> Tensor:
    """Which tokens are kept: bool (H / factor, W / factor), those with all their pixels kept.

    Args:
        keep: `top-half`, `bottom-half`, `left-half`, `right-half`; a box `x0,y0,x1,y1` in pixels;
            or an image file, white where pixels are kept and black elsewhere.
        size: (H, W) in pixels, multiples of `factor`.
        read_files: whether an image file may be named; others than the user may not.
        original: (H, W) of the image before it was reduced to cover `size`, and the rest cut off;
            one that is less than a token larger was only cut. Boxes and files are in its pixels;
            files may also be in those of `size`.

    Raises:
        UserError: for anything else, and if nothing would be kept or sampled.
    """
    pixels = _marked(keep, size, factor, original, _KEPT, read_files=read_files)
    tokens = _whole_tokens(_as_picture(pixels, size, factor), factor)
    if not tokens.any():
        patch = f"'{keep}' keeps no whole patch of {factor} x {factor} pixels"
        reduced = _once_reduced(original, size)
        raise UserError(f"{patch}{reduced}; keep more of the image, or sample one from nothing")
    if tokens.all():
        raise UserError(
            f"'{keep}' keeps the whole image, so that there is nothing to sample; keep less of it"
        )
    return tokens


def changed_mask(
    changed: str, size: tuple[int, int], factor: int, original: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """What of an image may change: tokens, bool (H / factor, W / factor), those with any pixel of a
    region; and these pixels, bool (H, W).

    The region is given as what is kept is to `keep_mask`, white where an image may change.

    Raises:
        UserError: as `keep_mask` does, and if nothing would change.
    """
    unmarked = ~_marked(changed, size, factor, original, _CHANGED)
    kept = _as_picture(unmarked, size, factor)
    tokens = ~_whole_tokens(kept, factor)
    if not tokens.any():
        raise UserError(f"'{changed}' marks no pixel of the image, so that nothing would change")
    return tokens, ~kept


class _Meaning(NamedTuple):
    """Of a region, for errors: its flag, and what is done where a mask is white."""

    flag: str
    white: str


_KEPT, _CHANGED = _Meaning("--keep", "are kept"), _Meaning("--mask", "may change")


def _marked(
    region: str,
    size: tuple[int, int],
    factor: int,
    original: tuple[int, int] | None,
    meaning: _Meaning,
    *,
    read_files: bool = True,
) -> Tensor:
    """The pixels of a half, a box or a file, bool (H, W) of the image before it was reduced."""
    given = read_files and Path(region).is_file()
    if region in HALVES and not given:
        return _within(_half(region, size, factor), size)
    before = original or size
    if given:
        return _read_mask(Path(region), (before, size), meaning)
    return _within(_box(region, before, meaning), before)


def _whole_tokens(pixels: Tensor, factor: int) -> Tensor:
    """Tokens all of whose pixels are marked."""
    height, width = pixels.shape
    return pixels.view(height // factor, factor, width // factor, factor).all(3).all(1)


def _once_reduced(original: tuple[int, int] | None, size: tuple[int, int]) -> str:
    """In which pixels boxes and masks of an image are that was reduced, for the end of errors."""
    if original is None:
        return ""
    before, now = (f"{width} x {height}" for height, width in (original, size))
    return (
        " once the image is reduced or cut off: boxes and masks are in its own "
        f"{before} pixels, not {now}"
    )


def _within(box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    x0, y0, x1, y1 = box
    pixels = torch.zeros(*size, dtype=torch.bool)
    pixels[y0:y1, x0:x1] = True
    return pixels


def _as_picture(pixels: Tensor, size: Sizes, factor: int) -> Tensor:
    """bool (H, W) of the image before, as the picture of `size` shows it: see `keep_mask`."""
    sides = list(zip(size, pixels.shape, strict=True))
    if not all(0 <= old - new < factor for new, old in sides):
        scale = max(new / old for new, old in sides)
        covering = [max(new, round(scale * old)) for new, old in sides]
        shares = F.interpolate(pixels[None, None].float(), covering, mode="area")[0, 0]
        pixels = shares == 1  # those that are marked as a whole
    return pixels[: size[0], : size[1]]


def _half(name: str, size: tuple[int, int], factor: int) -> tuple[int, int, int, int]:
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


def _box(text: str, size: tuple[int, int], meaning: _Meaning) -> tuple[int, int, int, int]:
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
