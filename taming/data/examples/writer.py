"""Where example data are written, and the names that they borrow from real datasets.

The class names are stand-ins: what a file calls a cup is a drum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from taming.data.examples.rendering import N_LABELS, Scene, render
from taming.data.files.list_files import write_lines

# In the order of SHAPES: ids in each dataset, of categories that the published configs use.
SYNSETS = ("n01641577", "n02085620", "n02099601", "n02123045", "n02165105")
THINGS = ((37, "sports ball"), (47, "cup"), (86, "vase"), (33, "suitcase"), (60, "donut"))
STUFF = ((157, "sky-other"), (124, "grass"))
OPEN_IMAGES = (
    ("/m/018xm", "Ball"),
    ("/m/02jvh9", "Mug"),
    ("/m/01fdzj", "Tower"),
    ("/m/025dyy", "Box"),
    ("/m/0jy4k", "Doughnut"),
)
COCO_LABELS = np.array([i - 1 for i, _ in (*THINGS, *STUFF)], dtype=np.uint8)  # as in the PNGs
ADE_LABELS = np.array([120, 126, 136, 42, 150, 3, 10], dtype=np.uint8)
PALETTE = np.random.RandomState(0).randint(0, 256, size=(N_LABELS, 3)).astype(np.uint8)
SPLITS = {"train": "train2017", "validation": "val2017"}


@dataclass(frozen=True)
class ExampleWriter:
    """Writes datasets below `root`.

    Attributes:
        train, validation: number of scenes of each split.
        height, width: of the images in pixels.
    """

    root: Path
    train: int = 8
    validation: int = 4
    height: int = 96
    width: int = 128

    def scenes(self, split: str, first_seed: int) -> list[Scene]:
        """The scenes of a split; among any five, each shape is the nearest object of one.

        Datasets give other values for `first_seed`, so that their scenes differ.
        """
        count, offset = (self.train, 0) if split == "train" else (self.validation, 5000)
        seeds = range(first_seed + offset, first_seed + offset + count)
        return [render(seed, self.height, self.width) for seed in seeds]

    def image(self, name: str, pixels: np.ndarray) -> None:
        """Save an image below `root`."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def text(self, name: str, lines: Sequence[str]) -> None:
        """Save lines below `root`."""
        write_lines(self.root / name, lines)
