"""Rendered landscapes: eight kinds of places at any time of day, with exact labels, depth, boxes.

Painted from far to near, in flat colors with facets, soft textures, haze and shadows.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from taming.data.examples.canvas import FINER, Air, Canvas, Color, oval, value_noise
from taming.data.examples.places import (
    CHANCES,
    GROUND,
    LABELS,
    PLACES,
    PLACES_HAVE,
    STUFF,
    TIMES,
)
from taming.data.examples.rendering import Box, box_around
from taming.data.examples.things import DRAWN, Random, Spot

FAR = 40.0
SMALLEST = 20  # visible pixels of an object that counts


@dataclass(frozen=True)
class Thing:
    """An object and the box around its visible pixels."""

    name: str
    box: Box


@dataclass(frozen=True)
class Landscape:
    """A rendered landscape."""

    place: str
    time: str
    image: np.ndarray  # uint8 (H, W, 3)
    labels: np.ndarray  # uint8 (H, W), places in `LABELS`
    depth: np.ndarray  # float32 (H, W), in heights of the camera, up to `FAR`
    things: tuple[Thing, ...]  # nearest first

    def regions(self) -> list[Thing]:
        """What is no object, with the boxes around it."""
        counts = np.bincount(self.labels.ravel(), minlength=len(LABELS))
        seen = [n for n in range(len(STUFF)) if counts[n] >= SMALLEST]
        return [Thing(STUFF[n], box_around(self.labels == n)) for n in seen]


def rgb(color: Color) -> np.ndarray:
    """A color float32 (3,)."""
    return np.asarray(color, dtype=np.float32)


class _Painter:
    """Paints one landscape."""

    def __init__(self, random: Random, place: str, size: tuple[int, int]) -> None:
        self.random, self.place = random, PLACES_HAVE[place]
        self.height, self.width = size
        self.time = TIMES[random.choice(len(TIMES), p=CHANCES)]
        self.horizon = self.height * random.uniform(0.4, 0.58)
        haze = 0.75 * rgb(self.time.low) + 0.25 * rgb(self.time.top)
        self.canvas = Canvas(*size, Air(rgb(self.time.light), haze))
        self.side = random.choice((-1, 1))
        self.noise = value_noise(random, 256, 8, 4)
        rows = np.arange(FINER * self.height, dtype=np.float32)[:, None] + 0.5
        columns = np.arange(FINER * self.width, dtype=np.float32)[None] + 0.5
        self.rows, self.columns = rows / FINER, columns / FINER
        # Distance of the plain: what is as high as the camera spans rows - horizon there.
        below = np.maximum(self.rows - self.horizon, 1e-3)
        self.far = np.minimum(0.8 * self.height / below, FAR).astype(np.float32)  # (rows, 1)

    def label(self, name: str) -> int:
        return LABELS.index(name)

    # ------------------------------------------------------------------ above the horizon

    def sky(self) -> None:
        time, canvas = self.time, self.canvas
        share = np.clip(self.rows / self.horizon, 0, 1) ** 1.2  # (rows, 1)
        colors = rgb(time.top) + share[..., None] * (rgb(time.low) - rgb(time.top))
        x = self.width * (0.5 + self.side * self.random.uniform(0.1, 0.4))
        y = self.horizon * (1 - self.random.uniform(*time.height))
        square = ((self.columns - x) ** 2 + (self.rows - y) ** 2).astype(np.float32)
        strength = 0.25 if time.name == "night" else 0.6
        glow = strength * np.exp(-square / np.float32((0.2 * self.height) ** 2))[..., None]
        canvas.image[:] = colors + glow * (rgb(time.sun) - colors)
        canvas.depth[:], canvas.labels[:] = FAR, self.label("sky")
        if time.name == "night":
            for _ in range(14):
                star = self.random.uniform(0, (self.width, 0.8 * self.horizon))
                canvas.image[int(FINER * star[1]), int(FINER * star[0])] = (255, 255, 240)
        radius = self.height * self.random.uniform(0.045, 0.065)
        canvas.brush = type(canvas.brush)(self.label("sun"), FAR)
        disc = square <= radius**2
        canvas.fill(disc, rgb(time.sun))

    def clouds(self) -> None:
        random, time = self.random, self.time
        white = np.array((70, 84, 130) if time.name == "night" else time.sun)
        base = 0.55 * rgb(time.low) + 0.45 * rgb(time.top)
        plain = Air(np.ones(3), np.zeros(3))
        air, self.canvas.air = self.canvas.air, plain
        for _ in range(random.choice(5, p=(0.2, 0.3, 0.3, 0.15, 0.05))):
            x, y = random.uniform(0, self.width), random.uniform(0.08, 0.72) * self.horizon
            size = self.height * random.uniform(0.05, 0.09)
            puffs = [(random.uniform(-1.8, 1.8), random.uniform(0.55, 1.1)) for _ in range(5)]
            with self.canvas.painting(self.label("cloud"), 0.0):
                for mix, shift, shrink in ((0.45, 0.0, 1.0), (0.85, 0.22, 0.8)):
                    color = base + mix * (white - base)
                    for right, radius in puffs:
                        r = radius * size * shrink
                        points = oval((x + right * size, y - shift * size), (1.25 * r, r))
                        points[:, 1] = np.minimum(
                            points[:, 1], y + 0.25 * size - shift * 0.5 * size
                        )
                        self.canvas.polygon(points, color, 0.92)
            cloud = self.canvas.labels == self.label("cloud")
            self.canvas.depth[cloud] = FAR
        self.canvas.air = air

    def mountains(self) -> None:
        low, high = self.place.mountains
        tallest = self.random.uniform(low, high)
        if tallest < 0.15:
            return
        for ridge in range(self.place.ridges):
            share = 1 - 0.32 * ridge
            with self.canvas.painting(self.label("mountain"), FAR * 0.8 - 9 * ridge):
                self._ridge(tallest * share * self.horizon)

    def _ridge(self, tall: float) -> None:
        """A ridge of peaks with a lit and a dark side, and snow on the highest."""
        random, canvas = self.random, self.canvas
        rocks = (176, 128, 96) if self.place.ground == "sand" else (132, 128, 146)
        color = np.clip(np.array(rocks) + random.uniform(-14, 14, 3), 0, 255)
        step, x, peaks = 0.9 * tall + 0.06 * self.width, -0.3 * self.width, []
        while x < 1.3 * self.width:
            x += step * random.uniform(0.5, 1.1)
            peaks.append((x, tall * random.uniform(0.5, 1.0)))
        base, order = self.horizon + 1, np.argsort([up for _, up in peaks])
        for number in order[::-1]:  # lower ones before
            x, up = peaks[number]
            half, bend = up * random.uniform(0.95, 1.3), random.uniform(-0.2, 0.2)
            top, foot = (x, base - up), (x + bend * half, base)
            crack = (x + random.uniform(-0.1, 0.1) * half, base - up * 0.55)
            for side in (-1, 1):
                bright = 1.2 if side == self.side else 0.74
                shoulder = (x + side * half * 0.42, base - up * random.uniform(0.5, 0.62))
                slope = [top, shoulder, (x + side * half, base), foot, crack]
                canvas.polygon(slope, color * bright)
                if up > 0.45 * self.height * 0.5 and self.place.ground != "sand":
                    cap = [top, _between(top, shoulder, 0.62), _between(top, crack, 0.4)]
                    cap.insert(2, _between(cap[1], cap[2], 0.5, 0.05 * up))
                    canvas.polygon(cap, np.array((240, 244, 250)) * (1.0 if bright > 1 else 0.8))

    def hills(self) -> None:
        for number in range(2):
            tall = self.random.uniform(*self.place.hills) * self.horizon * (1 - 0.4 * number)
            waves = self.random.uniform(0.6, 1.6, 3) * (1, 2, 4) * np.pi / self.width
            turns, x = self.random.uniform(0, 6.28, 3), np.linspace(0, self.width, 60)
            heights = (0.6 + np.sin(np.outer(x, waves) + turns) @ (0.25, 0.12, 0.05)) * tall
            color = np.array(self.place.hill) * (0.92 + 0.1 * number)
            with self.canvas.painting(self.label("hill"), 17 - 4.0 * number):
                line = np.stack([x, self.horizon + 1 - heights], axis=1)
                self.canvas.polygon(
                    [*line, (self.width, self.horizon + 1), (0, self.horizon + 1)], color
                )

    # ------------------------------------------------------------------ below it

    def _texture(self, wide: float, long: float) -> np.ndarray:
        """Noise on the plain, (rows, columns), which becomes dense far away."""
        step, side = 24, len(self.noise) - 1  # texels for a height of the camera
        across = (self.columns - self.width / 2) / self.height * (self.far * wide * step) % side
        along = np.broadcast_to(self.far * long * step % side, across.shape)
        x, y = (part.astype(np.float32) for part in (across, along))
        seen = cv2.remap(self.noise, x, y, cv2.INTER_LINEAR)
        return seen * np.exp(-self.far / 9)  # what is far has no grain

    def ground(self) -> None:
        color = rgb(GROUND[self.place.ground]) + rgb(self.random.uniform(-10, 10, 3))
        grain = {"grass": 15, "sand": 9, "snow": 7}[self.place.ground]
        colors = color + self._texture(1.0, 1.0)[..., None] * grain
        below = np.broadcast_to(self.rows > self.horizon, self.canvas.labels.shape)
        with self.canvas.painting(self.label(self.place.ground), 0.0):
            self.canvas.fill(below, self.canvas.air.seen(colors, self.far))
        np.copyto(self.canvas.depth, self.far, where=below)

    def water(self) -> None:
        """A lake with an opposite shore, or the sea up to the horizon: a mirror with ripples."""
        if not self.place.water:
            return
        x = np.linspace(0, self.width, 40)
        wave = np.sin(x * self.random.uniform(1.5, 4) / self.width + self.random.uniform(0, 6.28))
        reach = self.random.uniform(0.4, 0.62) * (self.height - self.horizon)
        near = self.horizon + reach * (1 + 0.16 * wave)
        if self.place.water == "lake":  # which narrows to both sides
            middle, half = (
                self.width * self.random.uniform(0.35, 0.65),
                self.width * self.random.uniform(0.5, 0.9),
            )
            bulge = np.sqrt(np.clip(1 - ((x - middle) / half) ** 2, 0, 1))
            far = self.horizon + 0.06 * self.height
            near = far + (near - far) * bulge
        else:
            far = self.horizon
        scale = np.array(FINER)
        outline = np.stack([np.append(x, (self.width, 0)), np.append(near, (far, far))], axis=1)
        mask = np.zeros(self.canvas.labels.shape, dtype=np.uint8)
        shore = outline + np.array((0, 0.018 * self.height))
        edge = mask.copy()
        cv2.fillPoly(edge, [np.round(shore * scale).astype(np.int32)], 1)
        cv2.fillPoly(mask, [np.round(outline * scale).astype(np.int32)], 1)
        rim = (edge > mask) & (self.canvas.labels == self.label(self.place.ground))
        self.canvas.image[rim] *= 0.86  # wet ground
        with self.canvas.painting(self.label("water"), 0.0):
            self.canvas.fill(mask.astype(bool), self._mirror())
        np.copyto(self.canvas.depth, self.far, where=mask.astype(bool))

    def _mirror(self) -> np.ndarray:
        """What the water shows, (rows, columns, 3): the picture upside down, and ripples."""
        rows = np.clip(FINER * (2 * self.horizon - self.rows[:, 0]), 0, FINER * self.horizon - 2)
        mirrored = cv2.blur(self.canvas.image[rows.astype(int)], (5, 9))
        deep = rgb((46, 108, 150)) * rgb(self.time.light)
        share = np.clip((self.rows - self.horizon) / (self.height - self.horizon), 0, 1)[..., None]
        ripples = self._texture(0.25, 2.2)[..., None]
        return mirrored * (0.84 - 0.45 * share) + deep * (0.12 + 0.45 * share) + 16 * ripples

    def path(self) -> None:
        if self.random.uniform() >= self.place.path:
            return
        rows = np.linspace(self.horizon + 1.5, self.height, 40)
        units = rows - self.horizon
        turn, start = self.random.uniform(0, 6.28), self.random.uniform(-0.6, 0.6)
        bend = self.random.uniform(0.3, 0.8) * np.sin(
            turn + 4 * self.height / (units + 0.5 * self.height)
        )
        middle = self.width / 2 + start * units + bend * units + self.width * 0.15 * np.cos(turn)
        half = 0.3 * units
        sides = [np.stack([middle + side * half, rows], axis=1) for side in (-1, 1)]
        outline = np.concatenate([sides[0], sides[1][::-1]])
        mask = np.zeros(self.canvas.labels.shape, dtype=np.uint8)
        cv2.fillPoly(mask, [np.round(outline * FINER).astype(np.int32)], 1)
        colors = rgb((206, 178, 136)) + self._texture(1, 1)[..., None] * 8
        with self.canvas.painting(self.label("path"), 0.0):
            self.canvas.fill(mask.astype(bool), self.canvas.air.seen(colors, self.far))
        np.copyto(self.canvas.depth, self.far, where=mask.astype(bool))

    # ------------------------------------------------------------------ things

    def things(self) -> list[str]:
        """Place and paint the things from far to near; their names by their numbers."""
        names = [
            name
            for name, least, most in self.place.things
            for _ in range(self.random.randint(least, most + 1))
        ]
        spots = [(spot, name) for name in names if (spot := self._spot(name)) is not None]
        spots.sort(key=lambda placed: placed[0].y)
        for number, (spot, name) in enumerate(spots):
            depth = 0.8 * self.height / (spot.y - self.horizon)
            with self.canvas.painting(self.label(name), depth, number):
                DRAWN[name](self.canvas, spot, self.random)
        return [name for _, name in spots]

    def _spot(self, name: str) -> Spot | None:
        """Where a thing may stand: boats on the water, cars on the path or the ground, others on
        the ground; None if no place was found."""
        allowed = {"boat": ("water",), "car": ("path",)}.get(name, (self.place.ground,))
        numbers = [self.label(one) for one in allowed]
        low, high = (0.14, 0.5) if name in ("house", "boat") else (0.12, 0.85)
        for _ in range(12):
            y = self.horizon + self.random.uniform(low, high) * (self.height - self.horizon)
            x = self.random.uniform(0.03, 0.97) * self.width
            row, column = int(FINER * y), int(FINER * x)
            if self.canvas.labels[row, column] in numbers:
                dark, snowy = self.time.name == "night", self.place.ground == "snow"
                unit = 0.16 * self.height / 1.2 * (0.35 + (y - self.horizon) / (0.5 * self.height))
                return Spot(x, y, unit, self.side, dark=dark, snowy=snowy)
        return None


def _between(
    a: tuple[float, float], b: tuple[float, float], share: float, up: float = 0.0
) -> tuple[float, float]:
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]) - up


def landscape(
    seed: int, height: int = 128, width: int = 128, place: str | None = None
) -> Landscape:
    """The landscape of a seed; without a `place`, that of `PLACES` in turn."""
    random, place = Random(seed), place or PLACES[seed % len(PLACES)]
    painter = _Painter(random, place, (height, width))
    for paint in (painter.sky, painter.clouds, painter.mountains, painter.hills):
        paint()
    for paint in (painter.ground, painter.path, painter.water):
        paint()
    names, canvas = painter.things(), painter.canvas
    labels, owner = canvas.labels[::FINER, ::FINER], canvas.owner[::FINER, ::FINER]
    depth = np.minimum(canvas.depth[::FINER, ::FINER], FAR)
    counts = np.bincount(owner[owner >= 0].ravel(), minlength=len(names))
    seen = [number for number in range(len(names)) if counts[number] >= SMALLEST]
    things = tuple(Thing(names[n], box_around(owner == n)) for n in reversed(seen))
    return Landscape(
        place=place,
        time=painter.time.name,
        image=canvas.picture(),
        labels=labels.copy(),
        depth=depth,
        things=things,
    )
