"""A canvas on which shapes are painted from far to near, with the label and depth of each pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np

FINER = 2  # rows and columns that are painted for each of the picture: edges are smooth
CLEAR_AIR = 42.0  # distance at which two thirds of what one sees is haze
Color = Sequence[float] | np.ndarray
Points = Sequence[tuple[float, float]] | np.ndarray
"""x and y of corners, in pixels of the picture."""


@dataclass(frozen=True)
class Air:
    """What the light and the distance do to colors, each red, green and blue from 0 to 255.

    Attributes:
        light: factors of colors.
        haze: what colors far away become.
    """

    light: np.ndarray
    haze: np.ndarray

    def seen(self, color: Color, depth: float | np.ndarray) -> np.ndarray:
        """Colors (..., 3) as they look at a distance (...), which is in heights of the camera."""
        near = np.exp(-np.asarray(depth, dtype=np.float32) / CLEAR_AIR)[..., None]
        return np.asarray(color, dtype=np.float32) * self.light * near + self.haze * (1 - near)


@dataclass(frozen=True)
class Brush:
    """What pixels become beside their color: the label, the distance, and the object's number."""

    label: int = 0
    depth: float = 0.0
    owner: int = -1


class Canvas:
    """A picture in the making.

    Attributes:
        image: float32 (F * height, F * width, 3), with F = `FINER`, as the following.
        labels: uint8.
        depth: float32, in heights of the camera.
        owner: int16, the number of the object that a pixel shows, or -1.
    """

    def __init__(self, height: int, width: int, air: Air) -> None:
        shape = (FINER * height, FINER * width)
        self.height, self.width, self.air = height, width, air
        self.image = np.zeros((*shape, 3), dtype=np.float32)
        self.labels = np.zeros(shape, dtype=np.uint8)
        self.depth = np.zeros(shape, dtype=np.float32)
        self.owner = np.full(shape, -1, dtype=np.int16)
        self.brush = Brush()

    @contextmanager
    def painting(self, label: int, depth: float, owner: int = -1) -> Iterator[None]:
        """Within the context, shapes are of this label, distance and object."""
        before, self.brush = self.brush, Brush(label, depth, owner)
        try:
            yield
        finally:
            self.brush = before

    @contextmanager
    def at(self, depth: float) -> Iterator[None]:
        """Within the context, shapes have this distance."""
        before, self.brush = self.brush, replace(self.brush, depth=depth)
        try:
            yield
        finally:
            self.brush = before

    def polygon(self, points: Points, color: Color, opacity: float = 1.0) -> None:
        """Fill a polygon."""
        self._put(self._mask([np.asarray(points)], 0.0), color, opacity)

    def ellipse(
        self,
        center: tuple[float, float],
        radii: tuple[float, float],
        color: Color,
        opacity: float = 1,
    ) -> None:
        """Fill an ellipse with upright axes."""
        self.polygon(oval(center, radii), color, opacity)

    def stroke(self, points: Points, width: float, color: Color, opacity: float = 1.0) -> None:
        """Draw a line through points."""
        self._put(self._mask([np.asarray(points)], width), color, opacity)

    def shade(self, points: Points, factor: float) -> None:
        """Darken a polygon: a shadow, which changes no label."""
        rows, columns, mask = self._mask([np.asarray(points)], 0.0)
        part = self.image[rows, columns]
        part[mask] *= factor

    def fill(self, mask: np.ndarray, color: np.ndarray) -> None:
        """Paint the pixels of a mask bool (F * height, F * width) with colors that are broadcast
        to the image's shape, which neither light nor haze change."""
        np.copyto(self.image, color, where=mask[..., None], casting="same_kind")
        self._mark(self.labels, self.depth, self.owner, mask)

    def _mask(self, shapes: list[np.ndarray], width: float) -> tuple[slice, slice, np.ndarray]:
        """Rows and columns around polygons (or, of some `width`, lines), and which pixels there."""
        corners = np.concatenate(shapes) * FINER  # (n, 2)
        room = int(FINER * width) + 1
        rows_all, columns_all = self.labels.shape
        x0, y0 = np.clip(np.floor(corners.min(0)).astype(int) - room, 0, (columns_all, rows_all))
        x1, y1 = np.clip(np.ceil(corners.max(0)).astype(int) + room, 0, (columns_all, rows_all))
        mask = np.zeros((max(y1 - y0, 0), max(x1 - x0, 0)), dtype=np.uint8)
        if mask.size:
            lines = [np.round(shape * FINER - (x0, y0)).astype(np.int32) for shape in shapes]
            if width:
                cv2.polylines(mask, lines, False, 1, max(1, round(FINER * width)))
            else:
                cv2.fillPoly(mask, lines, 1)
        return slice(y0, y1), slice(x0, x1), mask.astype(bool)

    def _put(self, place: tuple[slice, slice, np.ndarray], color: Color, opacity: float) -> None:
        rows, columns, mask = place
        seen = self.air.seen(color, self.brush.depth)
        part = self.image[rows, columns]
        part[mask] += opacity * (seen - part[mask])
        if opacity >= 0.5:  # else what is behind is what one sees
            parts = (
                self.labels[rows, columns],
                self.depth[rows, columns],
                self.owner[rows, columns],
            )
            self._mark(*parts, mask)

    def _mark(
        self, labels: np.ndarray, depth: np.ndarray, owner: np.ndarray, mask: np.ndarray
    ) -> None:
        labels[mask], depth[mask] = self.brush.label, self.brush.depth
        owner[mask] = self.brush.owner

    def picture(self) -> np.ndarray:
        """The picture uint8 (height, width, 3)."""
        small = cv2.resize(self.image, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return np.clip(small + 0.5, 0, 255).astype(np.uint8)


def oval(center: tuple[float, float], radii: tuple[float, float], corners: int = 20) -> np.ndarray:
    """The corners (n, 2) of a polygon that is nearly an ellipse."""
    turns = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(turns), np.sin(turns)], axis=1) * radii + center


def value_noise(random: np.random.RandomState, side: int, cells: int, octaves: int) -> np.ndarray:
    """Noise float32 (side, side) in about [-1, 1] that repeats: random values on grids of `cells`,
    twice as many and so on, each with half the weight of the last, smoothly between them."""
    total = np.zeros((side, side), dtype=np.float32)
    for octave in range(octaves):
        count = cells << octave
        grid = random.uniform(-1, 1, (count, count)).astype(np.float32)
        around = np.pad(grid, 2, mode="wrap")
        step = side // count
        wide = cv2.resize(around, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += wide[2 * step : 2 * step + side, 2 * step : 2 * step + side] / 2**octave
    return total
