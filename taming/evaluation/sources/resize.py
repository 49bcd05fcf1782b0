"""How images are brought to one size by a protocol: which filter, and whether they are cut."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from taming.config import did_you_mean
from taming.errors import UserError

PILLOW, OPENCV, TORCH = "pillow-antialias", "opencv", "torch-antialias"
RESIZES = (PILLOW, OPENCV, TORCH)


def resized(image: Image.Image, size: int, how: str, crop: bool) -> np.ndarray:
    """The largest centre crop of an RGB image (all of it without `crop`), uint8 (size, size, 3).

    All filters are bilinear. Pillow's, which the paper's references went through, and torch's count
    all pixels when an image shrinks; OpenCV's counts four at most, whatever lies between them.

    Raises UserError for another name than those of `RESIZES`.
    """
    (how,) = parse_resizes(how)
    if crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if how == PILLOW:
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    pixels = np.asarray(image)
    if how == OPENCV:
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    values = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]  # uint8 (1, 3, H, W)
    smaller = F.interpolate(values, (size, size), mode="bilinear", antialias=True)
    return smaller[0].permute(1, 2, 0).numpy()


def parse_resizes(text: str) -> tuple[str, ...]:
    """The names of `RESIZES` in a comma list; UserError for others, and for none."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names or ("",):
        if name not in RESIZES:
            hint = did_you_mean(name, RESIZES)
            raise UserError(f"there is no resize '{name}'{hint}; there are {', '.join(RESIZES)}")
    return names
