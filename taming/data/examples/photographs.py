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
from pathlib import Path

import numpy as np
from PIL import Image

from taming.data.files.list_files import write_lines
from taming.errors import UserError
from taming.pictures import resize_and_crop

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
    paths = []
    for name, place in PHOTOGRAPHS.items():
        package, _, rest = place.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UserError(
                f"{name} comes with {package}: pip install 'taming-transformers[data,eval]'"
            )
        (root / "shown").mkdir(parents=True, exist_ok=True)
        with Image.open(Path(spec.origin).parent / rest) as image:
            pixels = np.asarray(image.convert("RGB"))
        Image.fromarray(pixels).save(root / f"{name}.png")
        if name in SHOWN:
            middle = resize_and_crop(pixels, (SIDE, SIDE))
            Image.fromarray(middle).save(root / "shown" / f"{name}.png")
        paths.append(f"{name}.png")
    write_lines(root / "list.txt", paths * COPIES)
