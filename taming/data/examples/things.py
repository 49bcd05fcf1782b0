"""What stands in rendered landscapes: trees, houses, boats, sheep, cars, rocks and cacti."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from taming.data.examples.canvas import Canvas

WALLS = ((236, 220, 190), (222, 190, 160), (205, 215, 222), (240, 236, 226), (214, 160, 130))
ROOFS = ((176, 78, 58), (140, 66, 60), (92, 96, 112), (160, 104, 62))
CARS = ((206, 60, 52), (58, 112, 190), (236, 190, 66), (232, 232, 236), (60, 150, 120))
SAILS = ((250, 248, 240), (244, 206, 160), (230, 110, 90))
LIT = (255, 214, 120)  # a window in the dark


@dataclass(frozen=True)
class Spot:
    """Where a thing stands, and the light there.

    Attributes:
        x, y: the middle of its foot, in pixels.
        unit: pixels of the camera's height at this distance.
        side: -1 where the light comes from the left, 1 from the right.
        dark: whether it is night.
        snowy: whether snow lies on it.
    """

    x: float
    y: float
    unit: float
    side: int
    dark: bool = False
    snowy: bool = False

    def point(self, right: float, up: float) -> tuple[float, float]:
        """Pixels of a point that is so many heights of the camera beside and above the foot."""
        return self.x + right * self.unit, self.y - up * self.unit


Random = np.random.RandomState


def varied(random: Random, color: tuple[int, int, int], by: float = 12) -> np.ndarray:
    """A color a little lighter, darker and different."""
    return np.clip(
        np.array(color) + random.uniform(-by, by) + random.uniform(-by, by, 3) / 3, 0, 255
    )


def shadow(canvas: Canvas, spot: Spot, width: float, length: float) -> None:
    """A shadow on the ground, away from the light."""
    x, y, unit = spot.x, spot.y, spot.unit
    away, half = -spot.side * length * unit, width * unit / 2
    low, deep = 0.13 * width * unit, 0.16 * length * unit
    foot = [(x - half, y), (x - half / 2, y + low), (x + half / 2, y + low), (x + half, y)]
    tip = [(x + half * 0.6 + away, y - deep), (x - half * 0.6 + away, y - deep)]
    canvas.shade([*foot, *tip], 0.72)


def conifer(canvas: Canvas, spot: Spot, random: Random) -> None:
    """Three tiers of needles, lit from one side."""
    tall, wide = random.uniform(1.5, 2.4), random.uniform(0.36, 0.46)
    green = varied(random, (44, 104, 74))
    shadow(canvas, spot, 0.7, tall * 0.6)
    trunk = [(-0.06, 0), (0.06, 0), (0.06, 0.3), (-0.06, 0.3)]
    canvas.polygon([spot.point(*p) for p in trunk], (92, 66, 48))
    for number in range(3):
        low, high = 0.2 + number * 0.26 * tall, 0.2 + (number * 0.26 + 0.46) * tall
        half = wide * (1 - 0.26 * number)
        tip, middle = spot.point(0, min(high, tall)), spot.point(0, low)
        for side in (-1, 1):
            bright = 1.28 if side == spot.side else 0.86
            canvas.polygon([tip, middle, spot.point(side * half, low)], green * bright)
        if spot.snowy:
            share = 0.5
            edges = [
                (tip[0] + share * side * half * spot.unit, tip[1] + share * (middle[1] - tip[1]))
                for side in (-1, 1)
            ]
            canvas.polygon([tip, *edges], (238, 243, 250))


def tree(canvas: Canvas, spot: Spot, random: Random) -> None:
    """A trunk and three round crowns; some are of autumn."""
    tall = random.uniform(1.1, 1.7)
    leaves = ((92, 150, 70), (112, 164, 76), (78, 136, 84), (214, 148, 62), (196, 98, 60))
    green = varied(random, leaves[random.choice(5, p=(0.3, 0.3, 0.2, 0.12, 0.08))])
    shadow(canvas, spot, 0.9, tall * 0.6)
    canvas.stroke([spot.point(0, 0), spot.point(0, tall * 0.6)], 0.12 * spot.unit, (104, 76, 56))
    crowns = [(-0.26, 0.62, 0.3), (0.27, 0.6, 0.3), (0.0, 0.78, 0.4)]
    for brightness, shrink, shift in ((0.84, 1.0, 0.0), (1.05, 0.82, 0.07), (1.22, 0.46, 0.15)):
        for right, up, radius in crowns:
            size = radius * shrink * tall / 1.4 * spot.unit
            center = spot.point(right * tall / 1.4 + shift * spot.side, up * tall + shift * 0.8)
            canvas.ellipse(center, (size, size), green * brightness)


def palm(canvas: Canvas, spot: Spot, random: Random) -> None:
    """A bent trunk and seven leaves."""
    tall, lean = random.uniform(1.4, 2.1), random.uniform(-0.4, 0.4)
    shadow(canvas, spot, 0.4, tall * 0.5)
    bend = [spot.point(lean * t * t, tall * t) for t in np.linspace(0, 1, 7)]
    canvas.stroke(bend, 0.1 * spot.unit, (140, 104, 74))
    green = varied(random, (70, 140, 80))
    for turn in np.linspace(-0.35, np.pi + 0.35, 7):
        reach = np.array([np.cos(turn), 0.55 * np.sin(turn) - 0.1]) * 0.72
        middle, end = (
            (lean + reach[0] * 0.5, tall + reach[1] + 0.12),
            (lean + reach[0], tall + reach[1] * 0.5 - 0.22),
        )
        blade = [
            spot.point(lean, tall + 0.04),
            spot.point(*middle),
            spot.point(*end),
            spot.point(middle[0], middle[1] - 0.16),
        ]
        canvas.polygon(blade, green * (1.2 if reach[0] * spot.side > 0 else 0.85))


def house(canvas: Canvas, spot: Spot, random: Random) -> None:
    """A gable, a long side, a roof; at night its windows are lit."""
    wide, deep, high, roof = (
        random.uniform(*r) for r in ((0.8, 1.0), (0.8, 1.2), (0.7, 0.95), (0.5, 0.65))
    )
    wall = varied(random, WALLS[random.randint(len(WALLS))], 8)
    tile = (
        np.array((236, 241, 248.0))
        if spot.snowy
        else varied(random, ROOFS[random.randint(len(ROOFS))], 8)
    )
    face = random.choice((-1, 1))  # where the long side is
    shadow(canvas, spot, wide + deep, 1.1)
    bright, dim = (0.8, 1.0) if face == spot.side else (1.02, 0.72)
    front = -face * deep / 2  # the gable spans 2 * half around it
    half = wide / 2
    a, b = front - half * 0.9, front + half * 0.9
    near, far = (b, b + deep) if face > 0 else (a, a - deep)
    rise = 0.1
    canvas.polygon(
        [
            spot.point(near, 0),
            spot.point(far, rise),
            spot.point(far, high + rise * 0.4),
            spot.point(near, high),
        ],
        wall * dim,
    )
    ridge = spot.point(front, high + roof)
    ridge_far = spot.point(front + face * deep, high + roof + rise * 0.3)
    gable = [spot.point(a, 0), spot.point(b, 0), spot.point(b, high), ridge, spot.point(a, high)]
    canvas.polygon(gable, wall * bright)
    over = face * 0.06
    canvas.polygon(
        [
            ridge,
            ridge_far,
            spot.point(far + over, high + rise * 0.4 - 0.07),
            spot.point(near + over, high - 0.07),
        ],
        tile * (1.1 if face == spot.side else 0.88),
    )
    canvas.stroke(
        [
            spot.point(near + over, high - 0.07),
            ridge,
            spot.point(a if face > 0 else b, high - 0.07),
        ],
        0.07 * spot.unit,
        tile * 0.8,
    )
    _openings(canvas, spot, (front, near, face), (high, rise, deep))


def _openings(
    canvas: Canvas, spot: Spot, across: tuple[float, float, float], up: tuple[float, float, float]
) -> None:
    """The door of a house's gable and the windows of its long side."""
    (front, near, face), (high, rise, deep) = across, up
    glass = np.array(LIT) / canvas.air.light if spot.dark else np.array((96, 120, 140))
    door = [(front - 0.1, 0), (front + 0.1, 0), (front + 0.1, 0.42), (front - 0.1, 0.42)]
    canvas.polygon([spot.point(*p) for p in door], (110, 76, 56))
    attic = [
        (front - 0.09, high),
        (front + 0.09, high),
        (front + 0.09, high + 0.2),
        (front - 0.09, high + 0.2),
    ]
    canvas.polygon([spot.point(*p) for p in attic], glass)
    for share in (0.3, 0.7):
        x, low = near + face * deep * share, high * 0.38 + rise * share
        window = [(x - 0.1, low), (x + 0.1, low), (x + 0.1, low + 0.26), (x - 0.1, low + 0.26)]
        canvas.polygon([spot.point(*p) for p in window], glass)


def boat(canvas: Canvas, spot: Spot, random: Random) -> None:
    """A hull and two sails, and their mirror image."""
    sail, hull = SAILS[random.randint(len(SAILS))], varied(random, (150, 84, 60))
    tall = random.uniform(0.9, 1.3)
    mirror = [spot.point(*p) for p in ((-0.3, 0), (0.34, 0), (0.06, -0.5 * tall))]
    canvas.shade(mirror, 0.88)
    canvas.polygon(
        [spot.point(*p) for p in ((-0.5, 0.18), (0.5, 0.18), (0.34, -0.02), (-0.36, -0.02))], hull
    )
    canvas.stroke([spot.point(0, 0.16), spot.point(0, tall)], 0.04 * spot.unit, (110, 84, 66))
    canvas.polygon([spot.point(*p) for p in ((0.04, 0.24), (0.04, tall), (0.44, 0.26))], sail)
    canvas.polygon(
        [spot.point(*p) for p in ((-0.04, 0.26), (-0.04, tall * 0.9), (-0.36, 0.28))],
        np.array(sail) * 0.86,
    )


def sheep(canvas: Canvas, spot: Spot, random: Random) -> None:
    """A woolly body on four legs."""
    face, dark = random.choice((-1, 1)), (74, 66, 66)
    shadow(canvas, spot, 0.5, 0.3)
    for right in (-0.17, -0.07, 0.08, 0.18):
        canvas.stroke([spot.point(right, 0.22), spot.point(right, 0)], 0.05 * spot.unit, dark)
    for brightness, shift in ((208, 0.0), (246, 0.045)):
        for right, up, radius in ((-0.16, 0.33, 0.16), (0.16, 0.33, 0.16), (0.0, 0.37, 0.2)):
            size = (radius - shift / 2) * spot.unit
            canvas.ellipse(
                spot.point(right + shift * spot.side, up + shift),
                (size, size),
                (brightness, brightness, brightness - 6),
            )
    canvas.ellipse(spot.point(face * 0.32, 0.4), (0.11 * spot.unit, 0.12 * spot.unit), dark)


def car(canvas: Canvas, spot: Spot, random: Random) -> None:
    """A cabin, a body, two wheels."""
    paint, face = np.array(CARS[random.randint(len(CARS))]), random.choice((-1, 1))
    shadow(canvas, spot, 1.1, 0.3)
    cabin = ((-0.3, 0.34), (-0.2, 0.58), (0.14, 0.58), (0.3, 0.34))
    canvas.polygon([spot.point(face * r, u) for r, u in cabin], (150, 186, 206))
    canvas.polygon(
        [
            spot.point(face * r, u)
            for r, u in ((-0.2, 0.54), (-0.19, 0.6), (0.13, 0.6), (0.15, 0.54))
        ],
        paint * 1.1,
    )
    body = ((-0.56, 0.1), (-0.56, 0.32), (-0.3, 0.38), (0.32, 0.38), (0.56, 0.28), (0.58, 0.1))
    canvas.polygon([spot.point(face * r, u) for r, u in body], paint)
    canvas.polygon(
        [
            spot.point(face * r, u)
            for r, u in ((-0.56, 0.1), (-0.56, 0.17), (0.58, 0.17), (0.58, 0.1))
        ],
        paint * 0.72,
    )
    for right in (-0.32, 0.34):
        canvas.ellipse(
            spot.point(face * right, 0.1), (0.13 * spot.unit, 0.13 * spot.unit), (46, 46, 52)
        )
        canvas.ellipse(
            spot.point(face * right, 0.1), (0.06 * spot.unit, 0.06 * spot.unit), (170, 172, 176)
        )


def rock(canvas: Canvas, spot: Spot, random: Random) -> None:
    """Facets, perhaps with snow on top."""
    gray, size = varied(random, (138, 132, 128)), random.uniform(0.25, 0.5)
    shadow(canvas, spot, 2 * size, 0.5 * size)
    top = [random.uniform(-0.2, 0.2) * size, random.uniform(0.9, 1.2) * size]
    left, right = (-size, 0.0), (size, 0.0)
    shoulders = (
        (-0.7 * size, random.uniform(0.5, 0.8) * size),
        (0.72 * size, random.uniform(0.4, 0.75) * size),
    )
    middle = (random.uniform(-0.2, 0.2) * size, 0.35 * size)
    for side, foot, shoulder in zip((-1, 1), (left, right), shoulders, strict=True):
        bright = 1.2 if side == spot.side else 0.76
        canvas.polygon([spot.point(*p) for p in (foot, shoulder, top, middle)], gray * bright)
    cap = (232, 238, 246) if spot.snowy else gray * 0.95
    canvas.polygon([spot.point(*p) for p in (left, middle, right)], gray * 0.9)
    if spot.snowy:
        canvas.polygon([spot.point(*p) for p in (shoulders[0], top, shoulders[1], middle)], cap)


def cactus(canvas: Canvas, spot: Spot, random: Random) -> None:
    """A stem and two arms."""
    tall, green = random.uniform(0.9, 1.4), varied(random, (86, 140, 92))
    shadow(canvas, spot, 0.3, tall * 0.6)
    stem = [(0.0, 0.0), (0.0, 1.0)]  # right, and up as a share of its height
    arms = [
        [(0.0, 0.4), (side * 0.28, 0.45 * (1 + 0.2 * side)), (side * 0.28, 0.8 * (1 + 0.1 * side))]
        for side in (-1, 1)
    ]
    for brightness, shift, width in ((0.84, 0.0, 0.2), (1.15, 0.03, 0.1)):
        for line in (stem, *arms):
            points = [spot.point(right + shift * spot.side, up * tall) for right, up in line]
            canvas.stroke(points, width * spot.unit, green * brightness)


DRAWN: dict[str, Callable[[Canvas, Spot, Random], None]] = {
    "conifer": conifer,
    "tree": tree,
    "palm": palm,
    "house": house,
    "boat": boat,
    "sheep": sheep,
    "car": car,
    "rock": rock,
    "cactus": cactus,
}
THINGS = tuple(DRAWN)
