"""Labeled boxes and points on white, in the font that Pillow carries."""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from taming.data.helper_types import BoundingBox, Point
from taming.pictures import to_values


class Canvas:
    """A white picture of (width, height) pixels; places on it are given as shares of its size."""

    def __init__(self, size: tuple[int, int], line_width: int, font_size: int | None) -> None:
        self._image = Image.new("RGB", size, "white")
        self._draw = ImageDraw.Draw(self._image)
        self._width = line_width
        self._font = ImageFont.load_default(size=font_size or max(8, min(size) // 20))

    @staticmethod
    def color(number: int) -> str:
        """A dark color of its own for each small number: hues a golden angle apart."""
        red, green, blue = colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.9, 0.75)
        return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"

    def _pixels(self, x: float, y: float) -> tuple[float, float]:
        width, height = self._image.size
        return x * (width - 1), y * (height - 1)

    def box(self, box: BoundingBox, label: str, color: str) -> None:
        """Draw the outline of a box, its label inside at the upper left."""
        first, last = self._pixels(*box[:2]), self._pixels(box[0] + box[2], box[1] + box[3])
        self._draw.rectangle((*first, *last), outline=color, width=self._width)
        self._text((first[0] + self._width + 1, first[1] + self._width), label, color)

    def point(self, point: Point, label: str, color: str) -> None:
        """Draw a dot, its label below."""
        x, y = self._pixels(*point)
        self._draw.circle((x, y), self._width + 1, fill=color)
        self._text((x + self._width, y + self._width), label, color)

    def _text(self, place: tuple[float, float], label: str, color: str) -> None:
        """Write at `place`, or as much nearer to the upper left as the whole text needs."""
        _left, _top, right, bottom = self._draw.textbbox(place, label, font=self._font)
        width, height = self._image.size
        moved = place[0] - max(0, right - width), place[1] - max(0, bottom - height)
        self._draw.text(moved, label, fill=color, font=self._font)

    def tensor(self) -> Tensor:
        """(3, H, W) float32 in [-1, 1]."""
        pixels = torch.from_numpy(np.array(self._image))  # (H, W, 3)
        return to_values(pixels.permute(2, 0, 1))
