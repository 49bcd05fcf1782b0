"""A small ImageNet, with depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.kit.images import write_image

CLASSES = ("n01440764", "n01641577", "n15075141")  # numbers 0, 30, 999


def write_depth(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = values.astype("<f4") * 37 + 1000
    Image.fromarray(stored.view(np.uint8).reshape(*values.shape, 4)).save(path)


def write_imagenet(root: Path) -> Path:
    """Two training images and one for validation of each of three classes, with depth."""
    folder = root / "cache/autoencoders/data"
    for split, maps, count in (("train", "train", 2), ("validation", "val", 1)):
        for number, synset in enumerate(CLASSES):
            for i in range(count):
                image = folder / f"ILSVRC2012_{split}/data/{synset}/{synset}_{i}.JPEG"
                write_image(image, 32, 48, seed=3 * number + i)
                depth = root / f"data/imagenet_depth/{maps}/{synset}/{synset}_{i}.png"
                write_depth(depth, np.asarray(Image.open(image))[..., 0])
    return folder
