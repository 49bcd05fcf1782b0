"""Labels of rendered landscapes, the kinds of places and the times of day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taming.data.examples.things import THINGS

STUFF = ("sky", "cloud", "sun", "mountain", "hill", "grass", "sand", "snow", "water", "path")
LABELS = (*STUFF, *THINGS)
PLACES = ("coast", "desert", "forest", "lake", "meadow", "mountains", "village", "winter")
# Colors of the labels in maps that people paint and look at.
PALETTE = np.array(
    [
        *((120, 180, 230), (245, 245, 245), (255, 225, 90), (150, 140, 160), (110, 150, 110)),
        *((120, 190, 80), (230, 205, 140), (215, 230, 245), (50, 110, 190), (190, 160, 120)),
        *((20, 90, 60), (60, 140, 40), (90, 170, 120), (200, 80, 60), (150, 70, 160)),
        *((250, 190, 200), (230, 40, 90), (120, 110, 100), (0, 160, 120)),
    ],
    dtype=np.uint8,
)


@dataclass(frozen=True)
class Time:
    """Colors of a time of day: the sky above and at the horizon, the light, the sun."""

    name: str
    top: tuple[int, int, int]
    low: tuple[int, int, int]
    light: tuple[float, float, float]
    sun: tuple[int, int, int]
    height: tuple[float, float]  # of the sun above the horizon, as shares of the sky


TIMES = (
    Time(
        name="day",
        top=(84, 152, 222),
        low=(206, 232, 244),
        light=(1.0, 1.0, 0.97),
        sun=(255, 250, 222),
        height=(0.5, 0.85),
    ),
    Time(
        name="dawn",
        top=(136, 158, 214),
        low=(255, 212, 184),
        light=(1.0, 0.9, 0.84),
        sun=(255, 240, 205),
        height=(0.2, 0.5),
    ),
    Time(
        name="dusk",
        top=(84, 70, 140),
        low=(255, 150, 92),
        light=(0.92, 0.7, 0.62),
        sun=(255, 214, 140),
        height=(0.08, 0.35),
    ),
    Time(
        name="night",
        top=(14, 22, 56),
        low=(58, 76, 128),
        light=(0.34, 0.42, 0.62),
        sun=(236, 238, 224),
        height=(0.5, 0.85),
    ),
)
CHANCES = (0.46, 0.18, 0.2, 0.16)  # of the times
GROUND = {"grass": (124, 172, 84), "sand": (228, 198, 140), "snow": (232, 238, 246)}


@dataclass(frozen=True)
class Place:
    """What a kind of place has: chances, numbers, and shares of the sky's height."""

    ground: str
    things: tuple[tuple[str, int, int], ...]  # names, least and most of them
    mountains: tuple[float, float] = (0.0, 0.0)  # heights; 0: none
    ridges: int = 1
    hills: tuple[float, float] = (0.06, 0.2)
    hill: tuple[int, int, int] = (112, 158, 96)
    water: str = ""  # "lake" or "sea"
    path: float = 0.0  # the chance of one


PLACES_HAVE = {
    "coast": Place(
        "sand", (("palm", 1, 4), ("boat", 1, 3), ("rock", 0, 2)), water="sea", hills=(0.0, 0.14)
    ),
    "desert": Place(
        "sand",
        (("cactus", 2, 6), ("rock", 1, 3)),
        (0.2, 0.5),
        hills=(0.05, 0.16),
        hill=(216, 172, 116),
    ),
    "forest": Place(
        "grass",
        (("conifer", 6, 11), ("tree", 1, 3)),
        hills=(0.15, 0.4),
        hill=(72, 124, 92),
        path=0.5,
    ),
    "lake": Place(
        "grass", (("conifer", 2, 5), ("boat", 0, 2), ("rock", 0, 2)), (0.3, 0.65), 2, water="lake"
    ),
    "meadow": Place("grass", (("sheep", 2, 6), ("tree", 1, 4), ("house", 0, 1)), path=0.4),
    "mountains": Place("grass", (("conifer", 1, 5), ("rock", 1, 4)), (0.55, 0.95), 3),
    "village": Place(
        "grass", (("house", 3, 5), ("tree", 1, 4), ("car", 0, 2)), (0.0, 0.4), path=1.0
    ),
    "winter": Place(
        "snow",
        (("conifer", 3, 7), ("house", 0, 2), ("rock", 0, 1)),
        (0.2, 0.6),
        hill=(206, 220, 236),
    ),
}
