"""Pixels and values, and pictures composed for people to look at.

Models compute with values in [-1, 1]; files and screens have pixels of 0 to 255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from taming.errors import UserError
from taming.fonts import font_for, shortened

# Of red, green and blue from 0 to 1, as torchvision's networks of ImageNet want them normalized.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

HALF_RANGE = 127.5  # pixel = (value + 1) * HALF_RANGE

Picture = Tensor | np.ndarray | Image.Image
"""Values (C, H, W) in [-1, 1]; or pixels uint8, (H, W) or (H, W, C); or an image of Pillow's."""

GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as Pillow has them
FONT_SIZE, HEAD = 14, 22

Sizes = tuple[int, int]
"""(height, width) in pixels."""


# ---------------------------------------------------------------------- values <-> pixels


def to_uint8(values: Tensor) -> Tensor:
    """Values in [-1, 1] as uint8 pixels of the same shape, rounded; what lies outside is cut.

    Tensors that are uint8 already are returned as they are.
    """
    if values.dtype == torch.uint8:
        return values
    return ((values.float() + 1) * HALF_RANGE).round().clamp(0, 255).byte()


def to_uint8_array(values: np.ndarray) -> np.ndarray:
    """`to_uint8` of an array."""
    if values.dtype == np.uint8:
        return values
    return np.clip(np.rint((values + 1) * HALF_RANGE), 0, 255).astype(np.uint8)


def to_values(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 values in [-1, 1], of the same shape."""
    values = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    # A single image fits into a processor's cache, through which a batch would go three times.
    one_by_one = pixels.device.type == "cpu" and pixels.dim() > 3
    parts = zip(pixels, values, strict=True) if one_by_one else [(pixels, values)]
    for source, target in parts:
        target.copy_(source).div_(HALF_RANGE).sub_(1)
    return values


def to_values_array(pixels: np.ndarray) -> np.ndarray:
    """`to_values` of an array."""
    values = np.divide(pixels, np.float32(HALF_RANGE), dtype=np.float32)
    values -= 1.0
    return values


def to_gray(pixels: Tensor) -> Tensor:
    """RGB pixels uint8 [B, 3, H, W] as gray ones [B, 1, H, W]."""
    weights = torch.tensor(GRAY_WEIGHTS, device=pixels.device).view(1, 3, 1, 1)
    return (pixels * weights).sum(dim=1, keepdim=True).round().clamp(0, 255).byte()


def to_pillow(values: Tensor) -> Image.Image:
    """Values (C, H, W) in [-1, 1], with C = 1 (gray), 3 or 4 (RGBA), as an image of Pillow's."""
    _check_channels(values)
    pixels = to_uint8(values.detach()).permute(1, 2, 0).cpu().numpy()  # (H, W, C)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def to_rgb_pixels(values: Tensor) -> Tensor:
    """Values (C, H, W) in [-1, 1] as pixels uint8 (3, H, W), as a PNG of them would be read.

    Gray values (C = 1) are repeated; of RGBA (C = 4), transparency is dropped.
    """
    _check_channels(values)
    return to_uint8(values[:3]).expand(3, -1, -1).contiguous()


def _check_channels(values: Tensor) -> None:
    if values.shape[0] not in (1, 3, 4):
        raise UserError(f"the model gives {values.shape[0]} channels; images have 1, 3 or 4")


# ---------------------------------------------------------------------- resizing


def resize(
    pixels: np.ndarray,
    size: tuple[int, int],
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Pixels uint8 (H, W, C), or float values (H, W) or (H, W, C), at `size` (height, width).

    Bilinear; when an image shrinks, all of its pixels count (Pillow's filter, "antialiased").
    Label numbers, int32 (H, W), need NEAREST as `resampling`.
    """
    if pixels.shape[:2] == tuple(size):
        return pixels
    shape = (size[1], size[0])
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
        return np.asarray(Image.fromarray(pixels).resize(shape, resampling))
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    resized = [
        np.asarray(Image.fromarray(plane).resize(shape, resampling))
        for plane in np.ascontiguousarray(planes.transpose(2, 0, 1))
    ]
    return np.stack(resized, axis=2).reshape(*size, *pixels.shape[2:])


def resize_and_crop(
    pixels: np.ndarray,
    size: tuple[int, int],
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """`resize` until `size` (height, width) is just covered, then cut off the rest at both ends."""
    return Placed.covering((pixels.shape[0], pixels.shape[1]), size).of(pixels, resampling)


@dataclass(frozen=True)
class Placed:
    """How a picture is made of an image: the image is resized, and the picture cut out of that.

    Attributes:
        before: size of the image.
        resized: its size then.
        corner: (top, left) of the picture in it.
        size: of the picture.
    """

    before: Sizes
    resized: Sizes
    corner: Sizes
    size: Sizes

    @classmethod
    def whole(cls, size: Sizes) -> Placed:
        """The image as it is."""
        return cls(size, size, (0, 0), size)

    @classmethod
    def reduced(cls, before: Sizes, most: Sizes) -> Placed:
        """All of the image; one larger than `most` is reduced until it just covers that."""
        if any(old <= new for old, new in zip(before, most, strict=True)):
            return cls.whole(before)
        return replace(cls.whole(_covering(before, most)), before=before)

    @classmethod
    def covering(cls, before: Sizes, size: Sizes) -> Placed:
        """Resized until `size` is just covered; the rest is cut off at both ends."""
        resized = _covering(before, size)
        top, left = ((old - new) // 2 for old, new in zip(resized, size, strict=True))
        return cls(before, resized, (top, left), size)

    def of(
        self, pixels: np.ndarray, resampling: Image.Resampling = Image.Resampling.BILINEAR
    ) -> np.ndarray:
        """The picture of an image (H, W) or (H, W, C); see `resize`."""
        (top, left), (height, width) = self.corner, self.size
        return resize(pixels, self.resized, resampling)[top : top + height, left : left + width]


def _covering(before: Sizes, size: Sizes) -> Sizes:
    """The smallest size of an image's proportions that covers `size`."""
    scale = max(new / old for old, new in zip(before, size, strict=True))
    height, width = (max(n, round(scale * old)) for old, n in zip(before, size, strict=True))
    return height, width


def enlarged(picture: Image.Image, side: int = 384) -> Image.Image:
    """A small picture with every pixel as a square, its longer side at most `side`, or as it is."""
    times = max(1, side // max(picture.size))
    size = (times * picture.width, times * picture.height)
    return picture if times == 1 else picture.resize(size, Image.Resampling.NEAREST)


# ---------------------------------------------------------------------- composing

Cell = Picture | str | None
"""A picture, a text in its place, or nothing."""


def grid(
    rows: Sequence[Sequence[Cell | tuple[str, Cell]]],
    titles: Sequence[str] | Mapping[int, str] = (),
    *,
    side: int | None = None,
    gap: int = 8,
    background: str = "white",
) -> Image.Image:
    """Pictures in rows and columns, `gap` pixels apart.

    Args:
        rows: the cells of every row, which may differ in number; `(caption, cell)` has a line of
            text above it. A column of None alone is a wider gap.
        titles: a text above each column, or above those columns that a mapping names.
        side: cells are scaled to fit into squares of so many pixels, small ones as `enlarged`; None
            leaves them at their own size.
    """
    cells = [[_composed(cell, side) for cell in row] for row in rows]
    columns = max(map(len, cells))
    widths = [
        max((row[x].width for row in cells if x < len(row)), default=0) for x in range(columns)
    ]
    heights = [max(cell.height for cell in row) for row in cells]
    lefts = [gap + sum(widths[:x]) + gap * x for x in range(columns)]
    head = HEAD if titles else 0
    size = (lefts[-1] + widths[-1] + gap, head + sum(heights) + gap * (len(heights) + 1))
    page = Image.new("RGB", size, background)
    if titles:
        _write_titles(page, titles, [*lefts, size[0]], gap)
    top = head + gap
    for row, height in zip(cells, heights, strict=True):
        for cell, left in zip(row, lefts, strict=False):
            page.paste(cell, (left, top))
        top += height + gap
    return page


def _write_titles(
    page: Image.Image, titles: Sequence[str] | Mapping[int, str], lefts: Sequence[int], gap: int
) -> None:
    """Above each named column, as wide as there is room before the next; `lefts` has one more."""
    named = dict(titles) if isinstance(titles, Mapping) else dict(enumerate(titles))
    ends = [*sorted(named)[1:], len(lefts) - 1]
    draw = ImageDraw.Draw(page)
    for column, end in zip(sorted(named), ends, strict=True):
        font = font_for(named[column], FONT_SIZE)
        text = shortened(named[column], lefts[end] - lefts[column] - gap, font)
        draw.text((lefts[column], gap // 2), text, fill="black", font=font)


def _composed(cell: Cell | tuple[str, Cell], side: int | None) -> Image.Image:
    if isinstance(cell, tuple):
        caption, cell = cell
        return _with_caption(caption, _composed(cell, side))
    if cell is None:
        return Image.new("RGB", (0, 0))
    if isinstance(cell, str):
        return _text_picture(cell, side or 192)
    if isinstance(cell, Tensor):
        cell = to_pillow(cell)
    elif isinstance(cell, np.ndarray):
        cell = Image.fromarray(cell)
    image = cell.convert("RGB")
    if side is None:
        return image
    image = enlarged(image, side)
    image.thumbnail((side, side))
    return image


def _with_caption(caption: str, picture: Image.Image) -> Image.Image:
    font = font_for(caption, FONT_SIZE - 2)
    page = Image.new("RGB", (picture.width, picture.height + HEAD - 4), "white")
    text = shortened(caption, picture.width, font)
    ImageDraw.Draw(page).text((0, 1), text, fill="black", font=font)
    page.paste(picture, (0, HEAD - 4))
    return page


def _text_picture(text: str, side: int) -> Image.Image:
    page = Image.new("RGB", (side, side), "white")
    fitting = text.splitlines()[: side // 13]
    font = font_for(text, FONT_SIZE - 4)
    ImageDraw.Draw(page).text((0, 1), "\n".join(fitting), "black", font=font)
    return page


def text_images(texts: Sequence[str], size: tuple[int, int]) -> Tensor:
    """Each text, black on white, as values [B, 3, H, W]; `size` is (height, width)."""
    height, width = size
    images = []
    for text in texts:
        font = font_for(text, max(8, height // 4))
        image = Image.new("L", (width, height), 255)
        ImageDraw.Draw(image).text((width / 2, height / 2), text, fill=0, font=font, anchor="mm")
        images.append(torch.from_numpy(np.array(image)).expand(3, -1, -1))
    return to_values(torch.stack(images))


def code_picture(indices: Tensor) -> Image.Image:
    """Codebook indices int64 (h, w) as an image of h x w pixels, an arbitrary color for each."""
    generator = torch.Generator().manual_seed(0)
    colors = torch.randint(256, (int(indices.max()) + 1, 3), generator=generator).byte()
    return Image.fromarray(colors[indices.cpu()].numpy())


def bar_picture(
    heights: Tensor, size: tuple[int, int] = (640, 120), color: str = "steelblue"
) -> Image.Image:
    """Bars for values (n,) of 0 or more, side by side, on white; `size` is (width, height).

    If there are more bars than pixels, a pixel shows the largest of its bars.
    """
    width, height = size
    groups = heights.float().cpu().tensor_split(min(width, len(heights)))
    tops = torch.stack([group.max() for group in groups])
    tops = height * tops / tops.max().clamp_min(1e-12)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for number, top in enumerate(tops.tolist()):
        left, right = (width * edge // len(tops) for edge in (number, number + 1))
        if top > 0:
            draw.rectangle((left, height - max(1, round(top)), right - 1, height), fill=color)
    return page
