"""Conditions that are made from the image itself: less detail, or its edges."""

from __future__ import annotations

import numpy as np
from PIL import Image

from taming.config import did_you_mean
from taming.errors import UserError

ENLARGEMENTS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def check_factor(name: str, factor: int | None) -> None:
    """Raise `UserError` if a reduction's factor is no whole number from 1."""
    if factor is not None and (not isinstance(factor, int) or factor < 1):
        raise UserError(f"{name} {factor!r} is no factor; give a whole number such as 4")


def check_enlargement(name: str) -> None:
    """Raise `UserError` if there is no such way to enlarge."""
    if name not in ENLARGEMENTS:
        raise UserError(f"keep_mode {name!r} is not known{did_you_mean(name, ENLARGEMENTS)}")


def _reduced(image: np.ndarray, factor: int) -> Image.Image:
    height, width = image.shape[:2]
    size = max(1, round(width / factor)), max(1, round(height / factor))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def reduce_and_enlarge(image: np.ndarray, factor: int | None, enlargement: str) -> np.ndarray:
    """uint8 (H, W, 3), reduced by `factor` (bicubic, antialiased) and brought back to its size."""
    if factor is None or factor == 1:
        return image
    height, width = image.shape[:2]
    return np.asarray(_reduced(image, factor).resize((width, height), ENLARGEMENTS[enlargement]))


def canny_edges(image: np.ndarray, factor: int = 1) -> np.ndarray:
    """Edges of uint8 (H, W, 3) as float32 (H, W, 3), 1 on -1: Canny (1986) with sigma 2.

    They are found in the image reduced by `factor`. Raises `UserError` without scikit-image.
    """
    try:
        from skimage.feature import canny
    except ImportError:
        raise UserError(
            "edges are found with scikit-image, which is not installed; "
            "run: pip install taming-transformers[data]"
        ) from None
    height, width = image.shape[:2]
    small = image if factor == 1 else np.asarray(_reduced(image, factor))
    grey = small @ np.array([0.2125, 0.7154, 0.0721]) / 255  # ITU-R 709
    edges = Image.fromarray(canny(grey, sigma=2).astype(np.uint8) * 255)
    values = np.asarray(edges.resize((width, height), Image.Resampling.NEAREST))
    return np.repeat(values[..., None] / np.float32(127.5) - 1, 3, axis=2).astype(np.float32)
