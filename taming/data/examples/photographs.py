"""Photographs that come with scikit-image, scikit-learn and matplotlib, for a first stage.

| file | with | photographer and license |
|---|---|---|
| china, flower | scikit-learn | danielbuechele, vultilion, both CC BY 2.0 |
| astronaut, rocket | scikit-image | NASA; SpaceX; public domain |
| chelsea, coffee | scikit-image | Stefan van der Walt; Rachel Michetti; CC0 |
| grace_hopper | matplotlib | U.S. Navy, public domain |
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from taming.data.files.list_files import write_lines
from taming.errors import UserError
from taming.pictures import resize_and_crop
from taming.shipped import extra

Pixels = NDArray[np.uint8]

PHOTOGRAPHS = {
    "china": "sklearn/datasets/images/china.jpg",
    "flower": "sklearn/datasets/images/flower.jpg",
    "astronaut": "skimage/data/astronaut.png",
    "rocket": "skimage/data/rocket.jpg",
    "chelsea": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
    "grace_hopper": "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
}
SHOWN = ("astronaut", "chelsea", "china", "coffee")  # square middles, beside the whole ones
SIDE = 256
COPIES = 40  # of each path in the list: an epoch is that many crops of each photograph


def write_photographs(root: Path) -> None:
    """Write the photographs, the middles of some to `shown/`, and `list.txt` for a dataset.

    Raises:
        UserError: if one of the packages is not installed.
    """
    (root / "shown").mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        pixels = read_photograph(name)
        Image.fromarray(pixels).save(root / f"{name}.png")
        if name in SHOWN:
            middle = resize_and_crop(pixels, (SIDE, SIDE))
            Image.fromarray(middle).save(root / "shown" / f"{name}.png")
    write_lines(root / "list.txt", [f"{name}.png" for name in PHOTOGRAPHS] * COPIES)


def write_tiles(root: Path, side: int = 64) -> None:
    """Write square tiles of the photographs, and `train.txt` and `test.txt` for datasets.

    Tiles are half a side apart, of the photographs as they are and at half their size. Those of the
    left three quarters are for training, those of the rest, with other pixels, for validation.

    Raises:
        UserError: as `write_photographs` does.
    """
    paths: dict[str, list[str]] = {"train": [], "test": []}
    for name in PHOTOGRAPHS:
        pixels = read_photograph(name)
        height, width = pixels.shape[:2]
        half = np.asarray(Image.fromarray(pixels).resize((width // 2, height // 2)))
        for size, image in (("whole", pixels), ("half", half)):
            border = image.shape[1] * 3 // 4
            for part, region in (("train", image[:, :border]), ("test", image[:, border:])):
                (root / part).mkdir(parents=True, exist_ok=True)
                for number, tile in enumerate(_tiles(region, side)):
                    path = f"{part}/{name}_{size}_{number:03}.png"
                    Image.fromarray(tile).save(root / path)
                    paths[part].append(path)
    for part, names in paths.items():
        write_lines(root / f"{part}.txt", names)


def read_photograph(name: str) -> Pixels:
    """RGB uint8 (height, width, 3).

    Raises:
        UserError: if its package is not installed.
    """
    place = PHOTOGRAPHS[name]
    package, _, rest = place.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{name} comes with {package}: {extra('data', 'eval')}")
    with Image.open(Path(spec.origin).parent / rest) as image:
        return np.asarray(image.convert("RGB"))


def _tiles(image: Pixels, side: int) -> Iterator[Pixels]:
    height, width = image.shape[:2]
    for y in range(0, height - side + 1, side // 2):
        for x in range(0, width - side + 1, side // 2):
            yield image[y : y + side, x : x + side]
