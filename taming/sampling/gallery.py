"""Pictures for people to look at: several on one, with names above them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from taming.sampling.animation import enlarged
from taming.sampling.folder import to_pillow

GAP, HEAD, FONT_SIZE = 8, 22, 14


def gallery(
    rows: Sequence[Sequence[Tensor | Image.Image]], titles: Sequence[str] = (), side: int = 192
) -> Image.Image:
    """Pictures in rows and columns on white, `titles` above the columns.

    Tensors are images (C, H, W) in [-1, 1]. All are scaled to fit into squares of `side` pixels;
    those that are much smaller show their pixels.
    """
    columns = max(len(row) for row in rows)
    head = HEAD if titles else 0
    size = (columns * (side + GAP) + GAP, head + len(rows) * (side + GAP) + GAP)
    page = Image.new("RGB", size, "white")
    font = ImageFont.load_default(size=FONT_SIZE)
    for column, title in enumerate(titles):
        place = (GAP + column * (side + GAP), GAP // 2)
        ImageDraw.Draw(page).text(place, title, fill="black", font=font)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            place = (GAP + x * (side + GAP), head + GAP + y * (side + GAP))
            page.paste(_fitted(picture, side), place)
    return page


def _fitted(picture: Tensor | Image.Image, side: int) -> Image.Image:
    image = picture if isinstance(picture, Image.Image) else to_pillow(picture.detach().float())
    image = enlarged(image.convert("RGB"), side)
    image.thumbnail((side, side))
    return image


def code_picture(indices: Tensor) -> Image.Image:
    """Codebook indices int64 (h, w) as an image of h x w pixels, a colour for each index.

    The colours are arbitrary: neighbouring indices have nothing in common.
    """
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(256, (int(indices.max()) + 1, 3), generator=generator).byte()
    return Image.fromarray(colours[indices.cpu()].numpy())


def bar_picture(
    heights: Tensor, size: tuple[int, int] = (640, 120), colour: str = "steelblue"
) -> Image.Image:
    """Bars for values (n,) that are 0 or more, side by side, on white; `size` is (width, height).

    Where there are more bars than pixels, a pixel shows the largest of its bars.
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
            draw.rectangle((left, height - max(1, round(top)), right - 1, height), fill=colour)
    return page
