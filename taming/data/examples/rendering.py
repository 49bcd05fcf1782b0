"""Small rendered scenes with exact labels, depth, boxes and captions.

Shaded balls, drums, cones, boxes and rings stand on a plain and hide one another.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHAPES = ("ball", "drum", "cone", "box", "ring")
SKY, GROUND = len(SHAPES), len(SHAPES) + 1  # labels after those of the shapes
N_LABELS = len(SHAPES) + 2
LIGHT = np.array([-0.5, -0.6, 0.62])  # towards the light: right, down, to the viewer
FAR = 12.0
Box = tuple[int, int, int, int]
"""x0, y0, width and height in pixels."""
Surface = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Over the square [-1, 1]^2: mask, normal (x, y, z), and height towards the viewer."""


@dataclass(frozen=True)
class SceneObject:
    """A shape of which a `share` of the pixels is visible, those in `box`."""

    shape: str
    color: str
    box: Box
    share: float


@dataclass(frozen=True)
class Scene:
    """A rendered scene."""

    image: np.ndarray  # uint8 (H, W, 3)
    labels: np.ndarray  # uint8 (H, W), below N_LABELS
    depth: np.ndarray  # float32 (H, W), in units of the camera's height
    objects: tuple[SceneObject, ...]  # nearest first

    @property
    def caption(self) -> str:
        """The scene in words."""
        names = [f"one {one.color} {one.shape}" for one in self.objects]
        return f"{' and '.join(names) or 'nothing'} on a green plain"

    @property
    def edges(self) -> np.ndarray:
        """uint8 (H, W): 255 where a pixel's label differs from its right or lower neighbor's."""
        padded = np.pad(self.labels.astype(np.int16), ((0, 1), (0, 1)), mode="edge")
        inner = padded[:-1, :-1]
        differs = (inner != padded[:-1, 1:]) | (inner != padded[1:, :-1])
        return differs.astype(np.uint8) * 255

    def box_of(self, label: int) -> Box:
        """The box around the pixels of a label."""
        return box_around(self.labels == label)


def _ball(u: np.ndarray, v: np.ndarray) -> Surface:
    z = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
    return z > 0, u, v, z, z


def _drum(u: np.ndarray, v: np.ndarray) -> Surface:
    z = np.sqrt(np.clip(1 - (u / 0.8) ** 2, 0, 1))
    return (z > 0) & (np.abs(v) <= 1), u / 0.8, 0 * v, z, z


def _cone(u: np.ndarray, v: np.ndarray) -> Surface:
    across = u / np.maximum((v + 1) / 2, 1e-6)
    z = np.sqrt(np.clip(1 - across**2, 0, 1))
    mask = (z > 0) & (np.abs(v) <= 1)
    return mask, across * 0.9, np.full_like(v, -0.44), z * 0.9, z * (v + 1) / 2


def _box(u: np.ndarray, v: np.ndarray) -> Surface:
    mask = (np.abs(u) <= 0.9) & (np.abs(v) <= 1)
    return mask, np.sign(u) * 0.7, 0 * v, np.full_like(u, 0.7), 0.9 - np.abs(u)


def _ring(u: np.ndarray, v: np.ndarray) -> Surface:
    radius = np.maximum(np.hypot(u, v), 1e-6)
    across = (radius - 0.7) / 0.3
    z = np.sqrt(np.clip(1 - across**2, 0, 1))
    return z > 0, across * u / radius, across * v / radius, z, z * 0.3


SURFACES = (_ball, _drum, _cone, _box, _ring)  # of SHAPES
COLORS = {"red": 0.0, "orange": 0.09, "yellow": 0.16, "blue": 0.62, "purple": 0.77}  # hues


class _Canvas:
    """Colors, labels and depth; each pixel keeps those of the nearest shape."""

    def __init__(self, height: int, width: int) -> None:
        self.rows, self.columns = np.mgrid[0:height, 0:width].astype(np.float32)
        self.horizon = 0.35 * height
        below = np.maximum(self.rows - self.horizon, 1e-3)
        ground = self.rows > self.horizon
        self.scale = height * 0.65  # pixels that something as high as the camera has at distance 1
        self.depth = np.where(ground, np.minimum(self.scale / below, FAR), FAR).astype(np.float32)
        self.labels = np.where(ground, GROUND, SKY).astype(np.uint8)
        fade = (self.rows / height)[..., None]
        sky = np.array([110, 160, 235]) + fade * np.array([180, 120, 40])
        grass = np.array([60, 130, 50]) + (1 - 1 / self.depth[..., None]) * np.array([60, 40, 40])
        self.image = np.where(ground[..., None], grass, sky)  # (H, W, 3)
        self.owner = np.full((height, width), -1)

    def add(self, number: int, shape: str, hue: float, *, x: float, z: float, size: float) -> int:
        """Stand a shape at distance `z`; returns how many pixels it would cover alone."""
        radius = size * self.scale / z
        center = self.horizon + self.scale / z - radius
        u, v = (self.columns - x) / radius, (self.rows - center) / radius
        mask, nx, ny, nz, height = SURFACES[SHAPES.index(shape)](u, v)
        depth = z - size * height
        seen = mask & (depth < self.depth)
        light = 0.35 + 0.65 * np.clip(nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2], 0, 1)
        color = np.array(colorsys.hsv_to_rgb(hue, 0.85, 1.0)) * 255
        self.image = np.where(seen[..., None], light[..., None] * color, self.image)
        self.depth = np.where(seen, depth, self.depth).astype(np.float32)
        self.labels[seen], self.owner[seen] = SHAPES.index(shape), number
        return int(mask.sum())


def render(
    seed: int,
    height: int = 96,
    width: int = 128,
    count: int | None = None,
    colors: Sequence[str] = tuple(COLORS),
) -> Scene:
    """The scene of a seed, with `count` objects (2 to 5 if None) in some of `colors`."""
    random = np.random.RandomState(seed)
    canvas = _Canvas(height, width)
    placed = []
    for number in range(random.randint(2, 6) if count is None else count):
        shape = SHAPES[(seed + number) % len(SHAPES)]
        color = colors[random.randint(len(colors))]
        z, x = random.uniform(1.1, 3), random.uniform(0.15, 0.85) * width
        size = random.uniform(0.4, 0.75)
        alone = canvas.add(number, shape, COLORS[color], x=x, z=z, size=size)
        placed.append((z, number, shape, color, alone))
    objects = tuple(
        SceneObject(shape, color, box_around(canvas.owner == number), visible / max(alone, 1))
        for _, number, shape, color, alone in sorted(placed)
        if (visible := np.count_nonzero(canvas.owner == number))
    )
    grain = random.normal(0, 3, canvas.image.shape)
    image = (canvas.image + grain).clip(0, 255).astype(np.uint8)
    return Scene(image, canvas.labels, canvas.depth, objects)


def box_around(mask: np.ndarray) -> Box:
    """The box around the true pixels of a mask (H, W)."""
    rows, columns = np.nonzero(mask)
    x0, y0 = int(columns.min()), int(rows.min())
    return x0, y0, int(columns.max()) + 1 - x0, int(rows.max()) + 1 - y0
