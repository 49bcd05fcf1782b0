"""Conditions that are made from the image itself: less detail, or its edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from taming.config import did_you_mean
from taming.errors import UserError
from taming.pictures import to_values_array

ENLARGEMENTS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Degradation:
    """A pair made from one image: a target, and a condition that shows less of it.

    The condition is the image reduced by `up_factor` (bicubic) and enlarged again, or with `edges`
    the Canny edges of the reduced image; without either there is none. The target is the image, if
    there is an `hr_factor` reduced by it and enlarged again. `keep_mode` is how reduced images are
    enlarged, one of `ENLARGEMENTS`. Raises `UserError` for factors below 1 and unknown modes.
    """

    up_factor: int | None = None
    hr_factor: int | None = None
    keep_mode: str = "bicubic"
    edges: bool = False

    def __post_init__(self) -> None:
        for name, factor in (("up_factor", self.up_factor), ("hr_factor", self.hr_factor)):
            if factor is not None and (not isinstance(factor, int) or factor < 1):
                raise UserError(f"{name} {factor!r} is no factor; give a whole number such as 4")
        if self.keep_mode not in ENLARGEMENTS:
            hint = did_you_mean(self.keep_mode, ENLARGEMENTS)
            raise UserError(f"keep_mode {self.keep_mode!r} is not known{hint}")

    def target(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) to uint8 (H, W, 3)."""
        return self._reduced_and_enlarged(image, self.hr_factor)

    def condition(self, image: np.ndarray) -> np.ndarray | None:
        """uint8 (H, W, 3) to float32 (H, W, 3) in [-1, 1]."""
        if self.edges:
            return canny_edges(image, self.up_factor or 1)
        if self.up_factor is None:
            return None
        return to_values_array(self._reduced_and_enlarged(image, self.up_factor))

    def _reduced_and_enlarged(self, image: np.ndarray, factor: int | None) -> np.ndarray:
        if factor is None or factor == 1:
            return image
        height, width = image.shape[:2]
        enlargement = Image.Resampling[self.keep_mode.upper()]
        return np.asarray(_reduced(image, factor).resize((width, height), enlargement))


def _reduced(image: np.ndarray, factor: int) -> Image.Image:
    height, width = image.shape[:2]
    size = max(1, round(width / factor)), max(1, round(height / factor))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def canny_edges(image: np.ndarray, factor: int = 1) -> np.ndarray:
    """Edges of uint8 (H, W, 3), found in the image reduced by `factor`: float32 (H, W, 3), 1 on -1.

    Canny's detector (IEEE TPAMI 8(6), 1986) with a Gaussian of sigma 2 pixels. Raises `UserError`
    if scikit-image is not installed.
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
    gray = small @ np.array([0.2125, 0.7154, 0.0721]) / 255  # ITU-R BT.709
    edges = Image.fromarray(canny(gray, sigma=2).astype(np.uint8) * 255)
    pixels = np.asarray(edges.resize((width, height), Image.Resampling.NEAREST))  # (H, W)
    return np.repeat(to_values_array(pixels)[..., None], 3, axis=2)
